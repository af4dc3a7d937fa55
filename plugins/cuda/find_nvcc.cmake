# mssts_find_nvcc(NVCC ROOT): nvcc and the folder above its bin, from CUDACXX, CUDA_HOME, the wheels of MSSTS_PYTHON's
# site-packages, /usr/local/cuda or PATH; empty where there is none.
function(mssts_find_nvcc nvcc_variable root_variable)
  set(candidates "$ENV{CUDACXX}")
  foreach(home "$ENV{CUDA_HOME}" "$ENV{CUDA_PATH}")
    if(home)
      list(APPEND candidates "${home}/bin/nvcc")
    endif()
  endforeach()
  if(MSSTS_PYTHON)
    # nvidia-cuda-nvcc and its neighbours share one folder from CUDA 13 on.
    execute_process(COMMAND "${MSSTS_PYTHON}" -c "import sysconfig; print(sysconfig.get_path('purelib'))"
                    OUTPUT_VARIABLE site OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    file(GLOB wheels "${site}/nvidia/cu[0-9]*/bin/nvcc")
    list(APPEND candidates ${wheels})
  endif()
  list(APPEND candidates /usr/local/cuda/bin/nvcc)
  find_program(on_path nvcc NO_CACHE)
  if(on_path)
    list(APPEND candidates "${on_path}")
  endif()
  foreach(candidate ${candidates})
    if(NOT EXISTS "${candidate}" OR IS_DIRECTORY "${candidate}")
      continue()
    endif()
    # A wrapper script does not say where its toolkit is; nvcc itself does.
    execute_process(COMMAND "${candidate}" --dryrun -c -x cu /dev/null ERROR_VARIABLE said OUTPUT_QUIET
                    RESULT_VARIABLE outcome)
    if(outcome EQUAL 0 AND said MATCHES "#\\$ TOP=([^\n]*)")
      get_filename_component(root "${CMAKE_MATCH_1}" ABSOLUTE)
      # cuda_fp16.h wants nv/target, of CCCL.
      file(GLOB target_header "${root}/include/nv/target" "${root}/include/cccl/nv/target")
      if(EXISTS "${root}/include/cuda_runtime.h" AND target_header)
        set(${nvcc_variable} "${candidate}" PARENT_SCOPE)
        set(${root_variable} "${root}" PARENT_SCOPE)
        return()
      endif()
      message(STATUS "mssts cuda: ${candidate} has no cuda_runtime.h or nv/target beside it \
(pip: nvidia-cuda-runtime, nvidia-cuda-cccl)")
    endif()
  endforeach()
  set(${nvcc_variable} "" PARENT_SCOPE)
endfunction()
