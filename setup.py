"""Packaging. `kernels/` and `bench/` lie at the top of the repository and are installed inside gdcore.

The import name `kernels` belongs to another widely used distribution; installing ours over it would
break its users. Hence the package_dir below: after installation they are gdcore.kernels and gdcore.bench.
"""

import pathlib

from setuptools import setup

HERE = pathlib.Path(__file__).parent
BENCH = ["matplotlib>=3.8", "pytest-benchmark>=4", "scikit-learn>=1.4"]
GPU = ["nvidia-ml-py>=12"]  # lets the benchmark read the GPU's clocks
TEST = [
    "build>=1",
    "expecttest>=0.2",
    "hypothesis>=6",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "setuptools>=68",
    "wheel>=0.40",
]

setup(
    name="gdcore",
    version="0.1.0",
    description="Gradient descent on linear models and regression heads, fused: loss and gradient in one read of the data.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The gdcore authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        "gdcore",
        "gdcore.backends",
        "gdcore.sgd",
        "gdcore.training",
        "gdcore.kernels",
        "gdcore.kernels.table",
        "gdcore.bench",
        "gdcore.bench.page",
        "gdcore.bench.tuning",
    ],
    package_dir={"gdcore": "gdcore", "gdcore.kernels": "kernels", "gdcore.bench": "bench"},
    package_data={
        "gdcore": ["py.typed", "measured/*.json"],
        "gdcore.kernels": ["*.json"],
        "gdcore.bench": ["data/*.json", "data/*.md"],
        "gdcore.bench.page": ["*.css", "*.js"],
    },
    install_requires=[
        "numpy>=1.26",
        "platformdirs>=4",
        "rich>=13",
        "torch>=2.9",
        "triton>=3.6; platform_system == 'Linux'",
    ],
    extras_require={"bench": BENCH, "gpu": GPU, "test": TEST + BENCH, "lessons": ["matplotlib>=3.8"]},
    entry_points={"console_scripts": ["gdcore-bench = gdcore.bench.__main__:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    keywords="pytorch triton gpu kernels linear-regression mse sgd fused",
)
