"""The files in launch/: manifests are complete, scripts pass shellcheck, files stay short. local.sh is run in
test_processes.py.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

import care_jax
from care_jax import config

LAUNCH = pathlib.Path(care_jax.__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def test_every_way_to_start_is_there_and_short():
    names = {path.name for path in LAUNCH.iterdir()}
    assert names >= {"Dockerfile", "gke-jobset.yaml", "tpu-vm.sh", "slurm.sh", "local.sh", "README.md"}
    for path in [*SCRIPTS, LAUNCH / "Dockerfile", LAUNCH / "gke-jobset.yaml"]:
        assert len(path.read_text().splitlines()) <= 60, path
    assert all(path.stat().st_mode & 0o111 for path in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (the test extra has it)")
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_how_they_are_used(script):
    done = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"launch/{script.name}" in done.stderr


def test_the_jobset_is_one_slice_that_restarts_and_is_told_of_its_end():
    job = yaml.safe_load((LAUNCH / "gke-jobset.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["spec"]["failurePolicy"]["maxRestarts"] > 0
    (slice_,) = job["spec"]["replicatedJobs"]
    spec = slice_["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a pod alone cannot join the others again"
    (container,) = pod["containers"]
    chips = 1
    for size in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(size)
    assert container["resources"]["limits"]["google.com/tpu"] * spec["completions"] == chips
    assert {"name": "CARE_JAX_DISTRIBUTED", "value": "auto"} in container["env"]
    token = next(variable for variable in container["env"] if variable["name"] == "HF_TOKEN")
    assert "value" not in token, "a token belongs into a secret"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    command, *arguments = container["args"]
    assert command == "train"
    words = [word for word in arguments if "=" not in word]
    loaded = config.load(*words, overrides=[word for word in arguments if "=" in word])
    assert loaded.output_dir.startswith("gs://")


def test_commands_that_the_pages_show_load():
    shown = "".join(path.read_text() for path in LAUNCH.iterdir())
    commands = re.findall(r"(?:train|plan) ((?:dpo|kto|simpo)-[\w.\-]+) ([\w\-]+)", shown)
    assert commands
    for recipe, machine in commands:
        config.load(recipe, machine)


def test_compiler_flags_are_the_same_everywhere_and_known_to_the_compiler():
    flags_of = {path.name: set(re.findall(r"--xla_\w+=\w+", path.read_text())) for path in LAUNCH.iterdir()}
    gpu, tpu = flags_of["slurm.sh"], flags_of["tpu-vm.sh"]
    assert len(gpu) > 5
    assert len(tpu) > 3
    assert flags_of["Dockerfile"] == gpu | tpu
    # An unknown flag ends the program before it begins.
    script = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    for flags, known in ((gpu, True), ({"--xla_gpu_no_such_flag=true"}, False)):
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"XLA_FLAGS": " ".join(sorted(flags))}, check=False
        )
        assert (done.returncode == 0) == known


def test_slurm_lets_every_task_save():
    script = (LAUNCH / "slurm.sh").read_text()
    assert "srun --kill-on-bad-exit=0 --wait=0 " in script, "a task that ends with 75 must not end the others"


@pytest.mark.slow
def test_compiler_flags_are_known_to_libtpu():
    pytest.importorskip("libtpu", reason="needs the plan extra")
    flags = set(re.findall(r"--xla_\w+=\w+", (LAUNCH / "tpu-vm.sh").read_text()))
    script = "from care_jax.plan import targets; targets.topology('v5e:2x2')"
    for options, known in ((flags, True), ({"--xla_tpu_no_such_flag=true"}, False)):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": " ".join(sorted(options))}
        assert (subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0) == known


# A gcloud that prints the states in a file one after the other, the last for ever, and records its commands.
GCLOUD = """\
#!/usr/bin/env bash
words="$*"
case $words in
*describe*) state=$(head -1 "$STATES"); [ "$(wc -l <"$STATES")" = 1 ] || sed -i 1d "$STATES"
    case $state in
    none) echo "NOT_FOUND: no such resource" >&2; exit 1 ;;
    trouble) echo "UNAVAILABLE: try again" >&2; exit 1 ;;
    esac
    echo "$state" ;;
*) echo "$words" >>"$ASKED" ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "requests", "status"),
    [
        (["none", "WAITING_FOR_RESOURCES", "ACTIVE"], ["create"], 0),
        (["ACTIVE"], [], 0),
        (["SUSPENDING", "SUSPENDED", "none", "ACTIVE"], ["delete", "create"], 0),  # preempted just now
        (["FAILED", "none", "PROVISIONING", "ACTIVE"], ["delete", "create"], 0),
        (["none", "WAITING_FOR_RESOURCES", "trouble", "ACTIVE"], ["create"], 0),
        (["none", "FAILED"], ["create"], 1),
        (["trouble"], [], 1),  # for instance, not logged in
    ],
    ids=["new", "there", "preempted", "failed before", "trouble", "fails", "trouble at once"],
)
def test_a_tpu_is_requested_until_it_exists(tmp_path, states, requests, status):
    state_file, program = tmp_path / "states", tmp_path / "gcloud"
    state_file.write_text("\n".join(states) + "\n")
    program.write_text(GCLOUD)
    program.chmod(0o755)
    environment = os.environ | {"STATES": str(state_file), "ASKED": str(tmp_path / "asked"), "WAIT": "0", "SPOT": "1"}
    environment |= {"ZONE": "z", "TYPE": "v5p-16", "HF_TOKEN": "secret", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = [str(LAUNCH / "tpu-vm.sh"), "mine", "train", "quickstart"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    lines = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    resources = [line.split()[3] for line in lines if "queued-resources" in line]
    assert resources == requests
    assert "secret" not in "".join(lines)
    if status == 0:
        assert lines[-1].strip() == "exec venv/bin/care-jax train quickstart"


def test_the_image_holds_what_the_package_needs_and_passes_signals_on():
    lines = (LAUNCH / "Dockerfile").read_text()
    root = LAUNCH.parent
    copied = [word for line in re.findall(r"^COPY (.*)$", lines, re.M) for word in line.split()[:-1]]
    assert all((root / name).exists() for name in copied)
    assert {"care_jax", "configs", "pyproject.toml"} <= set(copied)
    assert 'ENTRYPOINT ["tini", "--", "care-jax"]' in lines
