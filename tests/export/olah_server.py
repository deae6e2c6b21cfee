"""Downloads through olah, a mirror of the Hub that others wrote, in an environment of its own: ``make hub-olah``.

It serves exported folders out of local git repositories, offline; this package's models are loaded from there in a
process whose ``HF_ENDPOINT`` is olah's address.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.exports import exported
from support.hub_client import hub_client, load

from timm_mvhybrid.models import TEST_MODEL_NAMES
from timm_mvhybrid.runtime.tensor_digest import tensors_sha256

OLAH = "olah==0.5.4"
START_S = 60


def install(folder):
    """Makes the environment unless it is there, and returns olah's command."""
    command = folder / "bin" / "olah-cli"
    if not command.exists():
        venv.create(folder, with_pip=True)
        pip = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run([*pip, OLAH], check=True, timeout=600)
    return command


def commit(source, repository, tag):
    """Puts an exported folder into a git repository, as olah's mirrors are."""
    shutil.copytree(source, repository)
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["commit", "-qm", "weights"],
        ["tag", tag],
    ):
        subprocess.run([*git, *arguments], check=True, timeout=60, stdout=subprocess.DEVNULL)


@contextmanager
def serve(command, folder):
    """Runs olah on the mirrors in a folder and yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "olah.toml"
    config.write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{folder / "repos"}"\n'
        f'hf-scheme = "http"\nhf-netloc = "127.0.0.1:9"\nmirror-netloc = "127.0.0.1:{port}"\n'
        f'mirrors-path = ["{folder / "mirrors"}"]\n[accessibility]\noffline = true\n'
    )
    url = f"http://127.0.0.1:{port}"
    with (folder / "olah.log").open("w") as log:
        process = subprocess.Popen(
            [str(command), "--config", str(config), "--log-path", str(folder / "logs")],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        try:
            wait_for(url, process)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url, process):
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def check(url, expected, cache):
    """Loads every model from olah, at main and by tag, and compares all tensors; an absent one must fail clearly."""
    with hub_client(HF_ENDPOINT=url, HF_HOME=str(cache)) as call:
        for name, digest in expected.items():
            for revision in ("", "@v1"):
                outcome = call(load, f"hf-hub:our-lab/{name}{revision}", cache / name)
                assert not outcome.error, outcome.error
                assert outcome.value["tensors"] == digest, name
                print(f"{name}{revision}: bit-equal")
        outcome = call(load, "hf-hub:our-lab/nothing", cache / "nothing")
        assert "nothing is published at" in outcome.error, outcome
        assert outcome.seconds < 10
        print(f"a missing repository: {outcome.error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--environment", type=Path, help="olah's virtual environment; made for the occasion by default"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = install((arguments.environment or folder / "environment").absolute())
        expected = {}
        for name in (*TEST_MODEL_NAMES, "vit12_small_patch16_256"):
            source, model = exported(folder / "exports", name)
            commit(source, folder / "mirrors" / "models" / "our-lab" / name, "v1")
            expected[name] = tensors_sha256(model.state_dict())
        with serve(command, folder) as url:
            check(url, expected, folder / "cache")
    return 0


if __name__ == "__main__":
    sys.exit(main())
