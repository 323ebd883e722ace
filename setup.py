from pathlib import Path

from setuptools import find_packages, setup

requirements = [
    line for line in Path(__file__).with_name("requirements.txt").read_text().splitlines() if line and line[0] != "#"
]

setup(
    name="alarm-rlhf",
    version="0.1.0",
    description="Hierarchical rewards modeling: RLHF with one holistic and several aspect rewards",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["alarm", "alarm.*"]),
    install_requires=requirements,
)
