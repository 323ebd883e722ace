from setuptools import setup

setup(
    name="trl",
    version="0.1.0",
    description="PPO with one reward per response token, for encoder-decoder and decoder-only models",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    # explicit, or a pytest run from the repository root would import this folder as an empty namespace package
    package_dir={"": "."},
    packages=["trl", "trl.extras"],
    install_requires=["torch", "transformers", "accelerate", "peft", "numpy", "packaging"],
)
