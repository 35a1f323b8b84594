"""Name, version and dependencies of the toolkit; ``make setup`` installs it with exact versions."""

from setuptools import setup

setup(
    name="mask-world-models",
    version="0.1.0",
    license="MIT",
    license_files=["LICENSE"],
    description="Model-based reinforcement learning with masked and mask-predicting world models",
    packages=["agents", "analysis", "commands", "envs", "experiment", "world_models"],
    py_modules=["run", "errors", "mask_classes", "atomic_file", "regular_file", "versions"],
    # numpy 2.4 has no wheel for 3.10, labmaze (of dm-control) none for 3.13.
    python_requires=">=3.11,<3.13",
    install_requires=[
        "torch>=2.8",
        "numpy>=2",
        "scipy>=1.13",
        "gymnasium>=1.2",
        "metaworld>=3.1",
        "mujoco>=3.3",
        "dm-control>=1.0.28",
        "tyro>=1.0,<1.1",  # commands/command_line.py reads its messages
        "pyyaml>=6",
        "tensorboard>=2.18",
        "tqdm>=4.66",
        "matplotlib>=3.9",
        "imageio-ffmpeg>=0.6",
        "pillow>=10",
        "h5py>=3.11",
        "diffusers>=0.35",
        "safetensors>=0.5",
        "rliable>=1.2",
        "pandas<3",  # rliable 1.2 needs arch, which breaks under pandas 3
    ],
    extras_require={
        # Two packages it brings compile while they are installed; the Makefile says what they need.
        "libero": ["hf-libero>=0.1.4", "robosuite==1.4.0"],
        "panda": ["robosuite==1.4.0"],  # the arm's model
        "lerobot": ["pyarrow>=21"],  # its datasets are Parquet files
        "serve": ["websockets>=15", "msgpack>=1.1"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
        "t5": ["transformers>=4.50", "sentencepiece>=0.2"],
        "sweep": ["ray[default]>=2.50"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.12",
            "mypy>=2.4",
            "robomimic>=0.2",
            "pyarrow>=21",
            "pygame>=2.6",  # draws Gymnasium's classic control, which tests act in
            "websockets>=15",
            "msgpack>=1.1",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
            "ray>=2.50",
        ],
    },
)
