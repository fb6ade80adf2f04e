"Packaging for mlops-course: every value comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from shlex import split

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    packages=find_packages(include=[cfg["lib_path"] + "*"]),
    package_data={cfg["lib_path"]: ["py.typed"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=split(cfg["requirements"]),
    extras_require={"dev": split(cfg["dev_requirements"])},
    entry_points={
        "console_scripts": cfg["console_scripts"].splitlines(),
        "papermill.engine": cfg["papermill_engines"].splitlines(),
        "jupyter_client.kernel_provisioners": cfg["kernel_provisioners"].splitlines(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
