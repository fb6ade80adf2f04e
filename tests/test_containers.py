"Lesson 15: what travels, what a layer holds, and the image itself, built and run with few rights."
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from importlib.metadata import requires
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import needs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlops_course.absent import OPTIONAL_MODULES
from mlops_course.base.processes import free_port, wait_until_ready
from mlops_course.container_engine import HARDENING_OPTIONS, IMAGE_TAG, build_image, podman, run_container
from mlops_course.containers import load_manifests, manifest_faults, schema_faults
from mlops_course.dockerfiles import cache_keys, context_files, lint_dockerfile, matches_pattern, parse_dockerfile, uncached_instructions
from mlops_course.image_layers import find_risks, make_sbom, open_image, tar_layer, visible_files, write_image
from mlops_course.keys import KeyStore

# The image's Python, for markers.
WHERE = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "platform_system": "Linux", "extra": "",
         "platform_machine": "x86_64", "os_name": "posix", "implementation_name": "cpython", "platform_python_implementation": "CPython"}


def script(root, name):
    "scripts/NAME.py as a module."
    spec = importlib.util.spec_from_file_location(name, root / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(path):
    "Package -> version in a lock, for the image's Python on Linux."
    lines = [o.partition(" \\")[0] for o in path.read_text(encoding="utf-8").splitlines() if re.match(r"[\w.-]+(\[.*\])?==", o)]
    found = [o for o in map(Requirement, lines) if not o.marker or o.marker.evaluate(WHERE)]
    return {canonicalize_name(o.name): str(o.specifier).removeprefix("==") for o in found}


# Layers and images

def test_the_same_files_make_the_same_layer():
    assert tar_layer({"b": b"2", "a": b"1"}) == tar_layer({"a": b"1", "b": b"2"})
    assert tar_layer({"a": b"1"}) != tar_layer({"a": b"1"}, {"a": 0o755})


def test_a_layer_is_an_ordinary_archive_with_the_rights_asked_for():
    with tarfile.open(fileobj=io.BytesIO(tar_layer({"bin/tool": b"x"}, {"bin/tool": 0o4755}))) as archive:
        assert [(o.name, o.mode, o.mtime, o.uid) for o in archive] == [("bin/tool", 0o4755, 0, 0)]


def image(folder, *layers):
    write_image(folder, [(f"step {i}", o) for i, o in enumerate(layers)], {"User": "7"})
    return open_image(folder)


def rewrite_config(folder, change):
    "Change the configuration of an image, with the digests that lead to it."
    def blob(digest): return folder / "blobs/sha256" / digest.removeprefix("sha256:")
    def put(value):
        data = json.dumps(value).encode()
        digest = f"sha256:{sha256(data).hexdigest()}"
        blob(digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}
    index = json.loads((folder / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
    about = json.loads(blob(manifest["config"]["digest"]).read_text())
    change(about)
    manifest["config"] |= put(about)
    index["manifests"][0] |= put(manifest)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("change", "made_by"), [
    (lambda o: o.pop("history"), ["no instruction on record"] * 2),
    (lambda o: o["history"].pop(), ["step 0", "no instruction on record"]),
    (lambda o: o["history"][0].pop("created_by"), ["no instruction on record", "step 1"]),
], ids=["no history", "short history", "no instruction"])
def test_a_layer_without_history_is_searched_too(tmp_path, change, made_by):
    image(tmp_path, tar_layer({"a": b""}), tar_layer({"app/.env": b""}))
    rewrite_config(tmp_path, change)
    _, layers = open_image(tmp_path)
    assert [o.made_by for o in layers] == made_by
    assert [(o.kind, o.path, o.made_by) for o in find_risks(layers)] == [("secret", "app/.env", made_by[1])]


def test_an_image_is_read_as_it_was_written(tmp_path):
    config, layers = image(tmp_path, tar_layer({"a": b"1"}), tar_layer({"b/c": b"22"}))
    assert config == {"User": "7"}
    assert [(o.made_by, o.size, o.files) for o in layers] == [("step 0", 1, {"a": b"1"}), ("step 1", 2, {"b/c": b"22"})]


def test_what_a_layer_hides_is_not_seen_but_held(tmp_path):
    _, layers = image(tmp_path, tar_layer({"app/.env": b"", "app/x/1": b"", "keep": b""}), tar_layer({"app/.wh..env": b"", "app/.wh.x": b""}))
    assert visible_files(layers) == {"keep": 0}
    assert [o.path for o in find_risks(layers)] == ["app/.env"]


def test_an_opaque_folder_hides_only_what_lies_below(tmp_path):
    _, layers = image(tmp_path, tar_layer({"x/old": b""}), tar_layer({"x/.wh..wh..opq": b"", "x/new": b""}))
    assert visible_files(layers) == {"x/new": 1}


def test_an_opaque_top_hides_all_that_was(tmp_path):
    _, layers = image(tmp_path, tar_layer({"old": b"", "x/old": b""}), tar_layer({".wh..wh..opq": b"", "new": b""}))
    assert visible_files(layers) == {"new": 1}


def test_a_folder_that_is_made_anew_in_a_layer_is_seen(tmp_path):
    "The mark that hides the old one stands in the same layer; in an archive of another tool even after the new one."
    _, layers = image(tmp_path, tar_layer({"app/x/old": b""}), tar_layer({"app/.wh.x": b"", "app/x/new": b""}))
    assert visible_files([layers[0], layers[1]._replace(rights=dict(reversed(layers[1].rights.items())))]) == {"app/x/new": 1}


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_a_changed_byte_is_refused(tmp_path, which):
    image(tmp_path, tar_layer({"a": b"1"}))
    manifest = json.loads((tmp_path / "index.json").read_text())["manifests"][0]["digest"]
    inside = json.loads((tmp_path / "blobs/sha256" / manifest[7:]).read_text())
    digest = {"layer": inside["layers"][0]["digest"], "config": inside["config"]["digest"], "manifest": manifest}[which]
    path = tmp_path / "blobs/sha256" / digest[7:]
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ValueError, match="damaged or changed"): open_image(tmp_path)


def test_a_folder_that_is_no_image_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="podman save"): open_image(tmp_path)


@pytest.mark.parametrize(("path", "content", "kinds"), [
    ("app/.env", b"", ["secret"]), ("root/.ssh/id_ed25519", b"", ["secret"]), ("etc/tls/server.key", b"", ["secret"]),
    ("app/a.py", b"url = 'postgresql://ana:correct-horse@db/x'", ["secret"]), ("app/a", b"-----BEGIN RSA PRIVATE KEY-----", ["secret"]),
    ("app/a", b"AKIAIOSFODNN7EXAMPLE", ["secret"]), ("app/a.py", b"https://example.org/a?b=c", []), ("app/.env.example", b"", []),
    ("packages/x.py", b"https://user:password@host", []), ("packages/.env", b"", ["secret"]), ("app/keys.py", b"monkey = 1", []),
])
def test_the_scanner_knows_a_secret(tmp_path, path, content, kinds):
    _, layers = image(tmp_path, tar_layer({path: content}))
    assert [o.kind for o in find_risks(layers)] == kinds


def test_the_scanner_knows_risky_rights(tmp_path):
    _, layers = image(tmp_path, tar_layer(dict.fromkeys("abc", b""), {"a": 0o4755, "b": 0o666, "c": 0o755}))
    assert [(o.kind, o.path) for o in find_risks(layers)] == [("setuid", "a"), ("writable", "b")]


def test_the_inventory_lists_both_kinds_of_packages(tmp_path):
    _, layers = image(tmp_path, tar_layer({"var/lib/dpkg/status": b"Package: libc6\nVersion: 2.36\n\nPackage: zlib1g\nVersion: 1:1.2\n",
                                       "packages/a-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: A\nVersion: 1\n\nText: no"}))
    assert [o["purl"] for o in make_sbom(layers)["components"]] == ["pkg:deb/debian/libc6@2.36", "pkg:deb/debian/zlib1g@1:1.2", "pkg:pypi/a@1"]


def test_the_inventory_reads_a_long_list_of_packages(tmp_path):
    long = "".join(f"Package: p{i}\nVersion: 1\nDescription: {'x' * 500}\n\n" for i in range(2500)).encode()
    assert len(long) > 1_000_000
    _, layers = image(tmp_path, tar_layer({"var/lib/dpkg/status": long, "data.bin": long}))
    assert list(layers[0].files) == ["var/lib/dpkg/status"]
    assert len(make_sbom(layers)["components"]) == 2500


def test_the_inventory_leaves_out_a_package_that_was_removed(tmp_path):
    "Debian keeps its entry while its settings are still there."
    states = {"libc6": "install ok installed", "curl": "deinstall ok config-files", "vim": "install ok half-installed"}
    text = "\n".join(f"Package: {k}\nStatus: {v}\nVersion: 1\n" for k, v in states.items())
    _, layers = image(tmp_path, tar_layer({"var/lib/dpkg/status": text.encode()}))
    assert [o["name"] for o in make_sbom(layers)["components"]] == ["libc6", "vim"]


# Contexts and caches

@pytest.mark.parametrize(("path", "pattern", "expected"), [
    ("a/b.py", "*.py", False), ("a/b.py", "**/*.py", True), ("b.py", "**/*.py", True), ("a/b/c", "a", True), ("ab", "a", False),
    ("a/b", "a/?", True), ("a/b/c", "a/*/c", True), ("x/.env", ".env", False), ("a.b", "a?b", True), ("a/b", "a*b", False),
])
def test_patterns_mean_what_docker_means(path, pattern, expected):
    assert matches_pattern(path, pattern) == expected


def test_the_last_line_that_means_a_file_decides():
    assert context_files(["a/x", "a/y", "b"], "*\n!a\na/y") == ["a/x"]
    assert context_files(["a"], "# a\n\n") == ["a"]


MODEL_FILES = ("model.onnx", "model.json", "recogniser.json")


def test_only_what_the_image_holds_travels(root):
    ignore = (root / ".dockerignore").read_text(encoding="utf-8")
    stays = [".env", ".git/config", ".venv/bin/python", "_course/tracking/mlflow.db", "deploy/secrets/postgres", "data/v1/x.png", "nbs/a.ipynb",
             "mlops_course/.env", "mlops_course/tools/.env", "mlops_course/reader/.env", "mlops_course/__pycache__/serving.cpython-311.pyc",
             "mlops_course/reader/__pycache__/custom.cpython-311.pyc", "bench/course.py", "data/recogniser/weights.safetensors",
             "data/scans/weights.safetensors", "data/scans/metrics.json"]
    assert context_files(stays, ignore) == []
    text = (root / "deploy/Dockerfile").read_text(encoding="utf-8")
    named = [w for o in parse_dockerfile(text) if o.word == "COPY" and "--from" not in o.rest for w in o.rest.split()[:-1]]
    for o in named: # each thing that is copied is there, and travels
        inside = [root / o] if (root / o).is_file() else [p for p in (root / o).rglob("*") if p.name in MODEL_FILES or p.suffix == ".py"]
        files = [p.relative_to(root).as_posix() for p in inside]
        assert files, o
        assert context_files(files, ignore) == files


DOCKERFILE = "FROM a AS one\nCOPY lock .\nRUN install \\\n  --all\nFROM a\nCOPY --from=one /x /x\nCOPY src src\nRUN check\n"


def test_lines_that_go_on_are_one_step():
    assert [(o.word, o.stage) for o in parse_dockerfile(DOCKERFILE)] == [
        ("FROM", 0), ("COPY", 0), ("RUN", 0), ("FROM", 1), ("COPY", 1), ("COPY", 1), ("RUN", 1)]
    assert parse_dockerfile(DOCKERFILE)[2].rest == "install --all"


def test_a_file_without_from_is_refused():
    with pytest.raises(ValueError, match="begins with FROM"): parse_dockerfile("RUN x")
    with pytest.raises(ValueError, match="nothing"): parse_dockerfile("# empty")


@pytest.mark.parametrize(("changed", "again"), [
    ("src/a", ["src src", "check"]), ("lock", ["lock .", "install --all", "--from=one /x /x", "src src", "check"]), ("README", [])])
def test_a_change_is_followed_through_the_stages(changed, again):
    before = {"lock": b"1", "src/a": b"1", "README": b"1"}
    assert [o.rest for o in uncached_instructions(DOCKERFILE, before, before | {changed: b"2"})] == again


def test_a_stage_has_its_name_in_any_case():
    text = DOCKERFILE.replace("AS one", "as  One").replace("\nFROM a\n", "\nFROM a As two\n") + "FROM TWO\nRUN more\n"
    before = {"lock": b"1", "src/a": b"1"}
    assert [o.rest for o in uncached_instructions(text, before, before | {"lock": b"2"})] == [
        "lock .", "install --all", "--from=one /x /x", "src src", "check", "TWO", "more"]


def test_another_base_does_everything_again():
    other = parse_dockerfile(DOCKERFILE.replace("FROM a", "FROM b"))
    assert not set(cache_keys(parse_dockerfile(DOCKERFILE), {})) & set(cache_keys(other, {}))


# What lies in deploy/

def test_the_linter_has_nothing_to_say(root):
    for path in (root / "deploy").rglob("Dockerfile"): assert lint_dockerfile(path) == []


def test_the_linter_says_what_it_cannot_read(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM\n")
    assert [o["level"] for o in lint_dockerfile(tmp_path / "Dockerfile")] == ["error"]


def test_the_image_locks_are_part_of_the_course_lock(root):
    course = pins(root / "requirements.lock")
    for name in ("requirements.lock", "build.lock", "mlflow/requirements.lock"):
        own = pins(root / "deploy" / name)
        wrong = {k: (v, course.get(k)) for k, v in own.items() if course.get(k) != v and k not in ("dumb-init", "psycopg2-binary")} # for images alone
        assert not wrong, f"deploy/{name} differs from requirements.lock: {wrong}. Run: python scripts/lock.py"
        text = (root / "deploy" / name).read_text(encoding="utf-8")
        assert text.count("==") <= text.count("--hash=sha256:")
        assert "://" not in text


def test_the_image_lock_holds_what_its_packages_need_and_no_more(root):
    "The closure of what scripts/lock.py names, by what the installed packages say they need."
    wanted, closed = {canonicalize_name(o) for o in script(root, "lock").IMAGE["requirements.lock"].split()} - {"dumb-init"}, {"dumb-init"}
    while wanted:
        name = wanted.pop()
        closed.add(name)
        needs_of = requires(name) or []
        wanted |= {canonicalize_name(o.name) for o in map(Requirement, needs_of) if not o.marker or o.marker.evaluate(WHERE)} - closed
    assert closed == set(pins(root / "deploy/requirements.lock")), "run: python scripts/lock.py"


def test_compose_gives_each_service_few_rights(root):
    compose = yaml.safe_load((root / "deploy/compose.yaml").read_text(encoding="utf-8"))
    for name, o in compose["services"].items():
        assert (o["read_only"], o["cap_drop"], o["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"]), name
        assert name == "reader" or "healthcheck" in o, name # the reader's stands in its image
        assert all(p.startswith("127.0.0.1:") for p in o.get("ports", [])), name
        assert o["image"].rpartition("/")[2].partition(":")[2] not in ("", "latest"), name
        assert "mem_limit" in o, name


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("openssl"), reason="the lines are for a shell with openssl")
def test_whoever_stops_the_service_waits_for_what_it_began(root):
    from mlops_course.base.servers import uvicorn_options
    from mlops_course.base.settings import ApiSettings
    longest = uvicorn_options(ApiSettings())["timeout_graceful_shutdown"]
    compose = yaml.safe_load((root / "deploy/compose.yaml").read_text(encoding="utf-8"))
    pod = yaml.safe_load((root / "deploy/kubernetes/deployment.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    asleep = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert int(compose["services"]["reader"]["stop_grace_period"].removesuffix("s")) > longest
    assert pod["terminationGracePeriodSeconds"] > asleep + longest


def test_the_written_start_of_compose_makes_every_password(root, tmp_path):
    text = (root / "deploy/compose.yaml").read_text(encoding="utf-8")
    lines = [o.removeprefix("#").strip() for o in text.splitlines() if o.startswith("#     ")]
    (tmp_path / "deploy").mkdir() # as after a clone
    subprocess.run(["bash", "-euc", "\n".join(o for o in lines if not o.startswith("docker "))], cwd=tmp_path, check=True)
    files = [tmp_path / "deploy" / o["file"] for o in yaml.safe_load(text)["secrets"].values()]
    assert [len(o.read_text(encoding="utf-8")) for o in files] == [48, 48]


def test_no_password_stands_in_deploy(root):
    for path in (root / "deploy").rglob("*"):
        if path.is_file() and "secrets" not in path.parts:
            assert not re.search(r"(?i)(password|secret|token)\w*\s*[:=]\s*[\"']?[\w-]{6,}[\"']?\s*$", path.read_text(encoding="utf-8"), flags=re.M), path
    assert "deploy/secrets/" in (root / ".gitignore").read_text(encoding="utf-8")


def test_compose_and_yaml_pass_their_linters(root):
    tools = Path(sys.executable).parent
    subprocess.run([tools / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", root / "deploy/compose.yaml"], check=True)
    rules = ("{extends: default, rules: {line-length: {max: 160}, document-start: disable, "
             "braces: disable, brackets: disable, comments: {min-spaces-from-content: 1}}}")
    subprocess.run([tools / "yamllint", "--strict", "-d", rules, root / "deploy"], check=True)


def test_kubernetes_and_we_accept_every_manifest(root):
    found = load_manifests(root / "deploy/kubernetes")
    assert {o["kind"] for o in found} == {"Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"}
    assert {o["kind"]: schema_faults(o) for o in found if schema_faults(o)} == {}
    assert [manifest_faults(o) for o in found if o["kind"] == "Deployment"] == [[]]


@pytest.mark.parametrize(("change", "fault"), [
    (lambda o: o.pop("livenessProbe"), "no livenessProbe"), (lambda o: o["resources"].pop("limits"), "no limit of memory"),
    (lambda o: o["resources"].pop("requests"), "no requests"), (lambda o: o.update(image="reader:latest"), "no fixed version"),
    (lambda o: o.update(image="host:5000/reader"), "no fixed version"), (lambda o: o["securityContext"].pop("capabilities"), "keeps capabilities"),
    (lambda o: o["securityContext"].update(runAsNonRoot=False), "may run as root"),
    (lambda o: o["securityContext"].pop("readOnlyRootFilesystem"), "may write"),
    (lambda o: o["securityContext"].pop("allowPrivilegeEscalation"), "may gain rights"),
])
def test_each_fault_of_a_deployment_is_named(root, change, fault):
    deployment = next(o for o in load_manifests(root / "deploy/kubernetes") if o["kind"] == "Deployment")
    change(deployment["spec"]["template"]["spec"]["containers"][0])
    [found] = manifest_faults(deployment)
    assert fault in found


def test_the_parts_of_kubernetes_mean_the_same_pods(root):
    found = {o["kind"]: o for o in load_manifests(root / "deploy/kubernetes")}
    pods = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    chosen = [found["Deployment"]["spec"]["selector"]["matchLabels"], found["Service"]["spec"]["selector"],
              found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"], found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]]
    assert all(o.items() <= pods.items() for o in chosen)
    assert "replicas" not in found["Deployment"]["spec"] # each apply would undo what the autoscaler has set
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]


def test_a_folder_without_manifests_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No YAML file"): load_manifests(tmp_path)


def test_prometheus_and_alertmanager_accept_their_files(root):
    promtool, amtool = needs("promtool", "checks Prometheus' files"), needs("amtool", "checks Alertmanager's file")
    subprocess.run([promtool, "check", "config", root / "deploy/prometheus/prometheus.yml"], check=True, capture_output=True)
    subprocess.run([amtool, "check-config", root / "deploy/alertmanager/alertmanager.yml"], check=True, capture_output=True)


def test_the_record_is_of_this_dockerfile_and_lock(root):
    record = json.loads((root / "data/image/build.json").read_text(encoding="utf-8"))
    for name, digest in record["files"].items():
        assert sha256((root / name).read_bytes()).hexdigest() == digest, f"{name} has changed since the record. Run: python scripts/image.py --record"


# Engines

def test_without_an_engine_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install podman buildah"): podman("--version")


def test_the_service_reads_without_what_the_image_leaves_out(root, tmp_path):
    "As in the image, but with this machine's packages: those that its lock does not name cannot be imported."
    code = ("import sys\nfrom importlib.util import find_spec\nfrom mlops_course.absent import stub_missing_modules\n"
            f"gone = {[o for o in OPTIONAL_MODULES if '.' not in o]!r} + ['mlflow', 'dvc', 'easyocr', 'sklearn', 'onnx', 'gradio', 'dask']\n"
            "class No:\n    def find_spec(self, name, *rest):\n        if name.partition('.')[0] in gone: raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, No())\nstub_missing_modules()\n"
            "from mlops_course.base.images import load_image\nfrom mlops_course.reader.serving import ModelSource, create_app\n"
            "from mlops_course.reader.custom import load_custom\nprint(ModelSource.__name__, load_custom()(load_image('data/pages/render_3.png')).text[:9])\n"
            "from mlops_course.reader.timetable_service import add_timetable_routes\nfrom fastapi.testclient import TestClient\n"
            f"app = create_app(folder={str(tmp_path)!r})\nadd_timetable_routes(app, app.state.service)\n"
            "client = TestClient(app, headers={'Authorization': f\"Bearer {app.state.service.keys.add('ana')}\"})\n"
            "with client, open('data/pages/render_3.png', 'rb') as file: found = [client.post('/v1/timetable', params={'roles': o},\n"
            "    files={'file': file.seek(0) or file.read()}).json() for o in ('rule', 'tokens')]\n"
            "print(found[0]['route'], len(found[0]['stops']), '|', found[1]['status'], found[1]['error'])")
    env = os.environ | {"MLOPS_COURSE_PATHS__RUNS": str(tmp_path)} # without a registry
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == [
        "ModelSource Route 121", "121 7 | 503 The model tokens is not on this server. Choose rule"], done.stderr[-1800:]


@pytest.fixture(scope="module")
def built(root, tmp_path_factory):
    "The image, built from the locks; its layers as an OCI folder."
    for o in ("podman", "buildah", "mmdebstrap"): needs(o, "builds and runs the image")
    helper = script(root, "image")
    subprocess.run(["bash", root / "scripts/base_image.sh"], check=True, timeout=600)
    build_image(root, wheels=helper.fetch_wheels(tmp_path_factory.mktemp("wheels")), revision="0" * 40)
    return helper


@pytest.mark.slow
def test_the_image_is_small_and_holds_nothing_risky(built):
    found = built.look_inside(IMAGE_TAG)
    assert found["mb"] < 650
    assert found["mb"] - found["base_mb"] < 450
    assert (found["user"], found["secrets"], found["writable"]) == ("10001:10001", 0, 0), found["found"]


@pytest.mark.slow
def test_the_image_says_what_it_is(built):
    about = json.loads(podman("image", "inspect", IMAGE_TAG))[0]
    assert about["Labels"]["org.opencontainers.image.revision"] == "0" * 40
    assert about["Healthcheck"]["Test"] == ["CMD", "python", "healthy.py"]
    assert not [o for o in about["Config"]["Env"] if "PIP" in o]


@pytest.mark.slow
def test_the_image_reads_a_page_with_few_rights(built):
    found = built.try_out()
    assert found["same_text"]
    assert found["stop_s"] < 8 # it was not killed


HELD = """
import os, pathlib
status = dict(o.split(':', 1) for o in pathlib.Path('/proc/self/status').read_text().splitlines())
root = next(o.split() for o in pathlib.Path('/proc/self/mounts').read_text().splitlines() if o.split()[1] == '/')
print(os.getuid(), int(status['CapBnd'], 16), int(status['NoNewPrivs']), root[3].split(',')[0])
"""


@pytest.mark.slow
def test_nothing_can_be_written_and_nothing_is_root(built):
    assert podman("run", "--rm", *HARDENING_OPTIONS, "--entrypoint", "python", IMAGE_TAG, "-c", HELD).splitlines()[-1] == "10001 0 1 ro"
    assert podman("run", "--rm", "--entrypoint", "python", IMAGE_TAG, "-c", HELD).splitlines()[-1] != "10001 0 1 ro"


def pod(root, folder, files):
    "What Kubernetes would mount, `files` being in its secret, as options of podman."
    spec = next(o for o in load_manifests(root / "deploy/kubernetes") if o["kind"] == "Deployment")["spec"]["template"]["spec"]
    volumes, options = {o["name"]: o for o in spec["volumes"]}, ["--image-volume", "ignore"]
    for o in spec["containers"][0]["volumeMounts"]:
        if o["mountPath"] == "/tmp": continue # LOCKED_DOWN has it
        at = folder / o["name"]
        at.mkdir(parents=True)
        if "secret" in volumes[o["name"]]: (at / o["subPath"]).write_text(files[o["subPath"]], encoding="utf-8")
        for path in (at, *at.iterdir()): # as Kubernetes does for fsGroup
            os.chown(path, 0, spec["securityContext"]["fsGroup"])
            path.chmod(0o2777 if path.is_dir() else 0o644)
        options += ["--volume", f"{at / o.get('subPath', '')}:{o['mountPath']}{':ro' if o.get('readOnly') else ''}"]
    return options


@pytest.mark.slow
def test_the_pod_of_kubernetes_answers_and_a_container_ends_with_its_block(root, built, tmp_path):
    key = KeyStore(tmp_path / "keys.json").add("ana")
    options = pod(root, tmp_path / "mounts", {"keys.json": (tmp_path / "keys.json").read_text(encoding="utf-8")})
    with pytest.raises(ZeroDivisionError), run_container(IMAGE_TAG, *HARDENING_OPTIONS, *options) as (name, url): # noqa: PT012 (one start for both)
        page = (root / "data/pages/render_3.png").read_bytes()
        for path in ("/v1/read", "/v1/timetable"):
            assert httpx.post(f"{url}{path}", files={"file": page}, headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code == 200
        1 / 0 # noqa: B018
    assert name not in podman("ps", "--all", "--format", "{{.Names}}")
    with pytest.raises(httpx.ConnectError): httpx.get(f"{url}/health")


def test_a_container_that_cannot_start_is_removed(monkeypatch):
    "Podman makes the container before it looks for its command."
    from mlops_course import container_engine
    said = []
    def answer(*words):
        said.append(words)
        if words[0] == "run": raise ChildProcessError("no such command")
    monkeypatch.setattr(container_engine, "podman", answer)
    with pytest.raises(ChildProcessError, match="no such command"), run_container("it", command=["no-such"]): pass
    run, remove = said
    assert (remove[0], remove[-1]) == ("rm", run[run.index("--name") + 1])
    assert "--ignore" in remove # nothing was made where the image is unknown


@pytest.mark.slow
def test_a_container_that_ends_at_once_says_why(built):
    with pytest.raises(TimeoutError, match="No such command"), run_container(IMAGE_TAG, command=["no-such"]): pass


@pytest.mark.slow
def test_sigterm_counts_while_it_is_starting(built):
    name = f"reader-start-{os.getpid()}"
    podman("run", "--detach", "--name", name, "--network", "none", *HARDENING_OPTIONS, IMAGE_TAG)
    try:
        podman("stop", "--time", "10", name)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name) in ("143", "0") # 137 would be: killed
    finally: podman("rm", "--force", "--volumes", name)


# On the machine at Amazon podman stands in for docker, which is asked to pull and to log in, and a shell for SSM.
STAND_INS = {
    "docker": """case "$1" in
        login | pull) cat < /dev/null ;;
        run) shift; exec podman run --env MLOPS_COURSE_SERVICES__API__PORT="$PORT" "$@" ;; # no network of its own
        *) exec podman "$@" ;;
    esac""",
    "aws": """case "$1 $2" in
        "ecr get-login-password") echo secret ;;
        "ssm send-command") while [ "$1" != --parameters ]; do shift; done
            code=0; jq --raw-output '.commands[]' <<< "$2" | sh >&2 || code=$?
            echo "$code" ;;
        "ssm wait") while [ "$1" != --command-id ]; do shift; done; exit "$2" ;;
    esac"""}


@pytest.mark.slow
def test_the_machine_at_amazon_takes_up_what_is_well_and_keeps_what_was(root, built, tmp_path):
    jobs = yaml.safe_load((root / ".github/workflows/deliver.yml").read_text(encoding="utf-8"))["jobs"]
    name, port = f"reader-{os.getpid()}", free_port()
    script = jobs["cloud"]["steps"][-1]["run"]
    for o, text in STAND_INS.items():
        (tmp_path / o).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / o).chmod(0o755)
    config = {} if Path("/run/systemd/system").exists() else {"CONTAINERS_CONF": str(root / "deploy/containers.conf")}
    env = {**os.environ, **config, "PATH": f"{tmp_path}:{os.environ['PATH']}", "REPOSITORY": IMAGE_TAG, "REGION": "here", "INSTANCE": "this",
           "PORT": str(port), "PRODUCT": name}

    def delivered(tag, script=script):
        done = subprocess.run(["bash", "-e", "-c", script], env={**env, "GITHUB_SHA": tag}, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr
    def at_work(): return podman("container", "inspect", "--format", "{{.Id}} {{.State.Running}}", name)
    def answers(): return wait_until_ready(f"http://127.0.0.1:{port}/ready", lambda: True, 30)
    tags = [f"{IMAGE_TAG}:{name}-{o}" for o in ("well", "ill")]
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE_TAG}\nENTRYPOINT [\"false\"]\n", encoding="utf-8")
    try:
        podman("tag", IMAGE_TAG, tags[0])
        build_image(tmp_path, "Dockerfile", tags[1])
        assert delivered(f"{name}-well")[0] == 0
        first, key = at_work(), podman("exec", name, "python", "serve.py", "keys", "add", "ana")
        assert answers()
        code, said = delivered(f"{name}-ill", script.replace("seq 60", "seq 3"))
        assert code == 1, said
        assert at_work() == first # what ran before runs again
        assert answers()
        assert delivered(f"{name}-well")[0] == 0
        assert at_work() != first
        with pytest.raises(ChildProcessError): podman("container", "inspect", f"{name}-before")
        page = (root / "data/pages/render_3.png").read_bytes() # keys and record are those of before
        assert httpx.post(f"http://127.0.0.1:{port}/v1/read", files={"file": page}, headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code == 200
    finally:
        for o in (name, f"{name}-before"): podman("rm", "--force", "--time", "0", "--ignore", o)
        podman("volume", "rm", "--force", name)
        podman("rmi", "--force", *tags)


@contextmanager
def composed(tmp_path, *names):
    "These services of deploy/compose.yaml, which lies in `tmp_path`. Yields their project's name, and podman-compose."
    compose = yaml.safe_load((tmp_path / "deploy/compose.yaml").read_text(encoding="utf-8"))
    compose["name"] = f"reader-{os.getpid()}"
    services = compose["services"] = {k: compose["services"][k] for k in names}
    for o in services.values(): # no ports of this machine, which others may use; what waits for health would wait for systemd
        for key in ("ports", "build", "restart", "depends_on"): o.pop(key, None)
    for key in ("networks", "secrets", "volumes"):
        used = {v.partition(":")[0] for o in services.values() for v in o.get(key, ["default"])}
        compose[key] = {k: v for k, v in compose[key].items() if k in used}
    path = tmp_path / "deploy/some.yaml"
    path.write_text(yaml.safe_dump(compose), encoding="utf-8")
    call = partial(podman, "--file", path, program=str(Path(sys.executable).with_name("podman-compose")), timeout_s=120)
    try: yield compose["name"], call
    finally: call("down", "--volumes")


def in_time(said, wanted, seconds=90):
    "Wait until `said()` holds `wanted`. What fails is asked again."
    until = time.monotonic() + seconds
    while True:
        try:
            if wanted in (found := said()): return
        except ChildProcessError as e: found = str(e)
        assert time.monotonic() < until, f"{wanted!r} was expected, and at last came: {found}"
        time.sleep(1)


OTHERS = {"prometheus": ("prometheus", "promtool"), "alertmanager": ("prometheus-alertmanager", "amtool")} # a service, and Debian's programs for it


@pytest.fixture
def together(root, built, tmp_path):
    "The service, Prometheus and Alertmanager, running: the two others are Debian's programs in images of the same names, paths and user."
    shutil.copytree(root / "deploy", tmp_path / "deploy")
    settings = tmp_path / "deploy/prometheus/prometheus.yml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("15s", "1s"), encoding="utf-8") # nobody wants to wait
    services = yaml.safe_load((root / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"]
    for name, programs in OTHERS.items():
        for o in programs: shutil.copy(needs(o, "runs in compose"), tmp_path / o.removeprefix("prometheus-"))
        inside = [o.removeprefix("prometheus-") for o in programs]
        templates = Path("/usr/share/prometheus/alertmanager")
        shutil.copytree(templates, tmp_path / "templates", dirs_exist_ok=True)
        (tmp_path / name).with_suffix(".Dockerfile").write_text(
            f"FROM python:3.11-slim\nCOPY {' '.join(inside)} /bin/\nCOPY templates {templates}\nRUN install --directory --owner=65534 /{name}\n"
            f'USER 65534\nENTRYPOINT ["/bin/{name}"]\n', encoding="utf-8")
        build_image(tmp_path, f"{name}.Dockerfile", services[name]["image"])
    podman("tag", IMAGE_TAG, services["reader"]["image"].replace("${PRODUCT:-reader}", "reader"))
    with composed(tmp_path, "reader", *OTHERS) as (project, call):
        call("up", "--detach")
        yield project


@pytest.mark.parametrize(("product", "model"), [("reader", "data/recogniser"), ("scans", "data/scans")])
def test_compose_serves_the_product_that_is_named(root, product, model):
    program = Path(sys.executable).with_name("podman-compose")
    env = os.environ | ({} if product == "reader" else {"PRODUCT": product, "MODEL": model})
    told = subprocess.run([program, "--podman-path", sys.executable, "--file", root / "deploy/compose.yaml", "config"],
                          env=env, capture_output=True, text=True, check=True).stdout
    service = yaml.safe_load(told)["services"]["reader"]
    assert service["image"] == f"localhost/{product}:0.1.0"
    assert sorted(service["build"]["args"]) == [f"MODEL={model}", f"PRODUCT={product}"]


@pytest.mark.slow
def test_compose_comes_up_and_its_parts_find_each_other(together):
    def asked(query): return podman("exec", f"{together}_prometheus_1", "promtool", "query", "instant", "http://localhost:9090", query)
    in_time(lambda: asked('up{job="reader"} or vector(0)'), "=> 1")
    in_time(lambda: asked("ocr_places_taken"), "ocr_places_taken")
    assert "OK" in podman("exec", f"{together}_prometheus_1", "python", "-c",
                          "from urllib.request import urlopen; print(urlopen('http://alertmanager:9093/-/healthy').read().decode())")


# What the official image does with the words that compose gives it, for Debian's PostgreSQL.
POSTGRES = """
FROM localhost/debian-postgres
RUN echo postgres70:x:70:70::/:/bin/sh >> /etc/passwd && install --directory --owner=70 --group=70 --mode=700 /var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
COPY start.sh /start.sh
CMD ["sh", "-e", "/start.sh"]
"""
START = """
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust --auth-host=scram-sha-256
    echo host all all all scram-sha-256 >> "$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres
fi
exec postgres -h '*' -k /run/postgresql
"""
A_RUN = """
import mlflow
mlflow.set_tracking_uri('http://127.0.0.1:5000')
with mlflow.start_run():
    mlflow.log_metric('cer', .25)
    mlflow.log_text('as on paper', 'note.txt')
    print(mlflow.artifacts.load_text(mlflow.get_artifact_uri('note.txt')))
"""


@pytest.mark.slow
def test_mlflow_keeps_its_runs_in_postgresql(root, tmp_path):
    for o in ("podman", "buildah", "mmdebstrap"): needs(o, "builds and runs the images")
    for image in ((), ("localhost/debian-postgres", "postgresql-15")):
        subprocess.run(["bash", root / "scripts/base_image.sh", *image], check=True, timeout=600)
    shutil.copytree(root / "deploy", tmp_path / "deploy")
    services = yaml.safe_load((root / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"]
    (tmp_path / "Dockerfile").write_text(POSTGRES, encoding="utf-8")
    (tmp_path / "start.sh").write_text(START, encoding="utf-8")
    build_image(tmp_path, "Dockerfile", services["postgres"]["image"])
    wheels = script(root, "image").fetch_wheels(tmp_path / "wheels", ["mlflow/requirements.lock"])
    build_image(root / "deploy/mlflow", "Dockerfile", services["mlflow"]["image"], wheels)
    (tmp_path / "deploy/secrets").mkdir(exist_ok=True)
    (tmp_path / "deploy/secrets/postgres").write_text("p@ss/w%rd", encoding="utf-8") # what an address could not hold as it is
    with composed(tmp_path, "postgres", "mlflow") as (project, call):
        call("up", "--detach", "postgres")
        in_time(lambda: podman("exec", f"{project}_postgres_1", "pg_isready", "--username", "mlflow"), "accepting connections")
        call("up", "--detach", "mlflow")
        in_time(lambda: podman("exec", f"{project}_mlflow_1", *services["mlflow"]["healthcheck"]["test"][1:]), "")
        assert podman("exec", f"{project}_mlflow_1", "python", "-c", A_RUN).splitlines()[0] == "as on paper"
        kept = podman("exec", f"{project}_postgres_1", "psql", "--username=mlflow", "--tuples-only", "--no-align", "--command=SELECT key, value FROM metrics")
        assert kept == "cer|0.25"
        assert "p@ss" not in podman("inspect", f"{project}_mlflow_1", f"{project}_postgres_1")
