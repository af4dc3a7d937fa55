/* The C ABI of the kernels of mssts: pointers, sizes, a stream or threads; no framework.
 *
 * Letters, as in mssts/ops: N frames, S tokens of all levels, Q queries, M heads, D channels a head, L levels, P
 * points, R coordinates of a reference; B clips, T query frames, U key frames, C = M*D channels. All tensors are dense
 * and row-major except where strides are given. Any alignment of an element's own size is accepted.
 *
 * Every function returns MSSTS_OK or another mssts_status, of which mssts_last_error() then tells the reason in one
 * line. Structs are versioned by MSSTS_ABI_VERSION: a caller compares it with mssts_abi_version() after loading a
 * library.
 */
#ifndef MSSTS_KERNELS_H
#define MSSTS_KERNELS_H

#include <stdint.h>

#define MSSTS_ABI_VERSION 1
#define MSSTS_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mssts_status {
  MSSTS_OK = 0,
  MSSTS_INVALID = 1,     /* sizes or pointers that no call may have */
  MSSTS_UNSUPPORTED = 2, /* a valid call that this build has no kernel for */
  MSSTS_NO_MEMORY = 3,
  MSSTS_CUDA_ERROR = 4
} mssts_status;

typedef enum mssts_dtype {
  MSSTS_FLOAT32 = 0,
  MSSTS_FLOAT16 = 1,
  MSSTS_BFLOAT16 = 2,
  MSSTS_FLOAT64 = 3,
  MSSTS_INT32 = 4,
  MSSTS_INT64 = 5
} mssts_dtype;

/* Multi-scale deformable attention (arXiv 2010.04159): softmax of the logits over L*P, locations from reference and
 * offsets (R = 2: reference + offset / (w, h); R = 4: reference + offset / P * box * 0.5), bilinear samples between
 * pixel centres, zero outside. Arithmetic is fp32, fp64 for fp64.
 * A NaN in an input gives NaN in the outputs that depend on it; no input makes a kernel read or write out of bounds.
 * A CPU refuses shapes whose tokens do not sum to S (MSSTS_INVALID). A GPU reads them too late for that: points in a
 * level that does not lie in the S tokens, or in one after it, give NaN outputs (the backward writes nothing out of
 * bounds, its gradients mean nothing); tokens behind the last level are not looked at, and their gradient is zero. */
typedef struct mssts_deform_attn {
  int64_t batch;         /* N; 0 is allowed, as is Q = 0 */
  int64_t tokens;        /* S */
  int64_t queries;       /* Q */
  int32_t heads;         /* M */
  int32_t channels;      /* D */
  int32_t levels;        /* L */
  int32_t points;        /* P */
  int32_t coordinates;   /* R: 2 or 4 */
  int32_t dtype;         /* of value, offsets, logits and out: a floating mssts_dtype */
  int32_t shapes_dtype;  /* MSSTS_INT32 or MSSTS_INT64 */
  int32_t flags;         /* of MSSTS_DETERMINISTIC, MSSTS_NO_TENSOR_CORES */
  const void* value;     /* [N, S, M, D] */
  const void* shapes;    /* [L, 2], (h, w); host memory on a CPU, device memory on a GPU; the sum of h*w is S (below) */
  const void* reference; /* [N, Q, L, R] fp32 (fp64 if dtype is) */
  const void* offsets;   /* [N, Q, M, L, P, 2], (x, y) */
  const void* logits;    /* [N, Q, M, L, P] */
  void* out;             /* [N, Q, M*D]; forward only */
  /* Backward only. Each gradient may be NULL where it is not wanted. All are overwritten, not added to. */
  const void* grad_out; /* [N, Q, M*D], dtype */
  void* grad_value;     /* [N, S, M, D], dtype */
  void* grad_reference; /* [N, Q, L, R], type of reference */
  void* grad_offsets;   /* [N, Q, M, L, P, 2], dtype */
  void* grad_logits;    /* [N, Q, M, L, P], dtype */
  void* workspace;      /* CUDA backward: as many bytes as mssts_cuda_deform_attn_workspace says; 256-byte aligned */
} mssts_deform_attn;

/* The backward gives the same bits on every run (CPU kernels always do). */
#define MSSTS_DETERMINISTIC 1
/* The CUDA forward uses fp32 multiply-adds alone, for comparison; MSSTS_CUDA_PATH=fma in the environment does too. */
#define MSSTS_NO_TENSOR_CORES 2

/* Scaled dot-product attention of the T query frames of each location to the U key frames of the same location:
 * softmax(q k^T / sqrt(D)) v for each clip, location and head. Tokens stay time-major.
 * Strides are in elements, of (clip, frame, location); the C channels of a token are contiguous. out and the gradients
 * are dense. */
typedef struct mssts_temporal_attn {
  int64_t batch;        /* B */
  int64_t locations;    /* S */
  int32_t query_frames; /* T */
  int32_t key_frames;   /* U */
  int32_t heads;        /* M */
  int32_t channels;     /* D, a head */
  int32_t dtype;        /* a floating mssts_dtype */
  int32_t reserved;
  int64_t query_strides[3];
  int64_t key_strides[3];
  int64_t value_strides[3];
  const void* query; /* [B, T, S, C] */
  const void* key;   /* [B, U, S, C] */
  const void* value; /* [B, U, S, C] */
  void* out;         /* [B, T, S, C] dense; forward only */
  /* Backward only; each gradient may be NULL. */
  const void* grad_out; /* [B, T, S, C] dense */
  void* grad_query;     /* [B, T, S, C] dense */
  void* grad_key;       /* [B, U, S, C] dense */
  void* grad_value;     /* [B, U, S, C] dense */
} mssts_temporal_attn;

/* Masks as COCO's compressed run-length strings, of logits that are brought to the frame on the way: pixel x of a side
 * of `width` pixels lies at ((2x + 1) * valid_width / (2 * cell * width) - 1/2) of the logits, between the outermost
 * ones that touch the valid part, and is inside where the bilinear mean of the logits around it, in fp64, is positive.
 * A mean that is NaN is outside. Runs go down the columns. The strings lie one behind the other in `text`, and ends[i]
 * is where the i-th mask's ends; a mask without a pixel has none. All of `ends` is right even where `capacity` does not
 * suffice: masks that end beyond it are left out of `text` whole, and the call is to be made again with a capacity of
 * the last of `ends`. */
typedef struct mssts_mask_rle {
  int64_t instances; /* K; 0 is allowed, as is T = 0 */
  int64_t frames;    /* T */
  int32_t rows;      /* of the logits of one mask */
  int32_t columns;
  int64_t strides[3];   /* in elements, of (instance, frame, row); the logits of a row are contiguous */
  int32_t valid_height; /* of the engine's frame, in its pixels; the logits behind it do not count */
  int32_t valid_width;
  int32_t cell;   /* pixels of the engine's frame to a logit, along a side */
  int32_t height; /* of the masks */
  int32_t width;
  int32_t reserved;
  int64_t capacity;    /* of text, in bytes */
  const float* logits; /* [K, T, rows, columns] */
  int64_t* ends;       /* [K * T] */
  char* text;
  void* workspace; /* as many bytes as mssts_cuda_mask_rle_workspace says; 16-byte aligned */
} mssts_mask_rle;

/* Who runs the tasks of a CPU kernel. `run` calls task(argument, i) once for each i in [0, tasks), on any of `threads`
 * threads, and returns when all are done. With a NULL executor, or a NULL `run`, the kernel uses the OpenMP runtime
 * that is loaded in the process, if one is (so that it shares PyTorch's threads), and threads of its own if none is;
 * `threads` then is how many, 0 for as many as the process may use. */
typedef struct mssts_executor {
  int32_t threads;
  void (*run)(void* context, int64_t tasks, void (*task)(void* argument, int64_t index), void* argument);
  void* context;
} mssts_executor;

MSSTS_API int32_t mssts_abi_version(void);
/* Why the last call on this thread failed; "" if none did. Valid until the next call on this thread. */
MSSTS_API const char* mssts_last_error(void);

/* The CPU library. */
MSSTS_API int mssts_cpu_deform_attn_forward(const mssts_deform_attn* call, const mssts_executor* executor);
MSSTS_API int mssts_cpu_deform_attn_backward(const mssts_deform_attn* call, const mssts_executor* executor);
MSSTS_API int mssts_cpu_temporal_attn_forward(const mssts_temporal_attn* call, const mssts_executor* executor);
MSSTS_API int mssts_cpu_temporal_attn_backward(const mssts_temporal_attn* call, const mssts_executor* executor);
/* The instruction set in use: "avx512", "avx2" or "portable": the best of the machine, or no better than what the
 * environment variable MSSTS_CPU_ISA names, which is read at the first call. */
MSSTS_API const char* mssts_cpu_isa(void);
/* Whose threads the default executor uses: "openmp" or "own". */
MSSTS_API const char* mssts_cpu_threads(void);

/* The CUDA library. Calls are asynchronous on `stream` (a cudaStream_t) of the current device, allocate nothing and can
 * be captured in a graph. fp64 is MSSTS_UNSUPPORTED. */
MSSTS_API int mssts_cuda_deform_attn_forward(const mssts_deform_attn* call, void* stream);
MSSTS_API int mssts_cuda_deform_attn_backward(const mssts_deform_attn* call, void* stream);
/* Bytes of device memory that the backward of this call needs; pointers other than the gradients' are not looked at. */
MSSTS_API int64_t mssts_cuda_deform_attn_workspace(const mssts_deform_attn* call);
MSSTS_API int mssts_cuda_temporal_attn_forward(const mssts_temporal_attn* call, void* stream);
MSSTS_API int mssts_cuda_temporal_attn_backward(const mssts_temporal_attn* call, void* stream);
MSSTS_API int mssts_cuda_mask_rle(const mssts_mask_rle* call, void* stream);
/* Bytes of device memory that this call needs; its pointers are not looked at. -1: a call that would fail. */
MSSTS_API int64_t mssts_cuda_mask_rle_workspace(const mssts_mask_rle* call);
/* What was built, as in "sm_80 sm_90 ptx_120, CUDA 13.0". */
MSSTS_API const char* mssts_cuda_build(void);
/* Number of GPUs these kernels can run on, 0 without a driver; never fails. */
MSSTS_API int32_t mssts_cuda_devices(void);

#ifdef __cplusplus
}
#endif

#endif /* MSSTS_KERNELS_H */
