"""Chooses the wheel's platform tag, which pyproject.toml cannot do.

A wheel with built kernels is for this platform, one without them for any.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class DistributionWithKernels(Distribution):
    """A distribution for this platform if kernels were built.

    They count as extension modules.
    """

    def has_ext_modules(self) -> bool:
        return any((ROOT / "mssts" / "lib").glob("*.so"))


class BuildWithoutLeftovers(build_py):
    """Drops what an earlier build left in `build/lib*`, which would be packed.

    Modules that have moved since are an example.
    """

    def run(self) -> None:
        leftovers = Path(self.build_lib).resolve()
        if leftovers.parent == ROOT / "build":  # not a folder of the user's, which --build-lib may name
            shutil.rmtree(leftovers, ignore_errors=True)
        super().run()


class WheelForAnyPython(bdist_wheel):
    """The tag py3-none-<platform> with kernels, py3-none-any without.

    Kernels do not depend on the Python version.
    """

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(distclass=DistributionWithKernels, cmdclass={"bdist_wheel": WheelForAnyPython, "build_py": BuildWithoutLeftovers})
