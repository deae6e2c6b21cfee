"""Push and pull through a server of our own, by huggingface_hub's own requests."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import timm
from support.exports import exported
from support.hub_client import command, hub_client, load, publish, run_python, set_organization
from support.hub_server import READ_TOKEN, TOKEN, Fault

from timm_mvhybrid.models import TEST_MODEL_NAMES
from timm_mvhybrid.runtime.tensor_digest import tensors_sha256

REPO = "our-lab/published"
# huggingface_hub alone takes 23 s to give up; a busy machine takes a few to answer
AT_ONCE_S = 15


def published(hub, folder, repo=REPO, **options):
    _, call = hub
    outcome = call(publish, folder, repo, token=TOKEN, **options)
    assert not outcome.error, outcome.error
    return outcome.value


@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_what_is_pushed_is_pulled_bit_for_bit(hub, tmp_path, name):
    server, call = hub
    folder, model = exported(tmp_path, name)
    summary = published(hub, folder, f"our-lab/{name}")
    assert summary["verified"]
    files = server.repositories[f"our-lab/{name}"].commits[summary["commit"]]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    outcome = call(load, f"hf-hub:our-lab/{name}", tmp_path / "cache")
    assert outcome.error == ""
    assert outcome.value["tensors"] == tensors_sha256(model.state_dict())
    assert outcome.value["sha256"] == hashlib.sha256(files["model.safetensors"]).hexdigest()


def test_a_model_of_real_size_is_pulled_bit_for_bit(hub, tmp_path):
    _, call = hub
    folder, model = exported(tmp_path, "vit12_small_patch16_256", dtype="bfloat16")
    published(hub, folder)
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    local = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert outcome.value["tensors"] == tensors_sha256(local.state_dict())
    assert outcome.value["tensors"] != tensors_sha256(model.state_dict())


def test_hub_folder_file_and_registry_give_the_same_weights(hub, folder, tmp_path):
    _, call = hub
    published(hub, folder, "our-lab/test_mvhybrid.random")
    call(set_organization, "our-lab")
    file = str(folder / "model.safetensors")
    outcomes = [
        call(load, "test_mvhybrid", tmp_path / "cache"),
        call(load, "test_mvhybrid.random", tmp_path / "cache"),
        call(load, "hf-hub:our-lab/test_mvhybrid.random", tmp_path / "cache2"),
        call(load, f"local-dir:{folder}", tmp_path / "cache3"),
        call(load, "test_mvhybrid", tmp_path / "cache3", pretrained_cfg_overlay={"file": file}),
    ]
    call(set_organization, None)
    assert [outcome.error for outcome in outcomes] == [""] * 5
    assert len({(tuple(o.value["features"]), o.value["tensors"], o.value["sha256"]) for o in outcomes}) == 1
    assert outcomes[0].value["hf_hub_id"] == "our-lab/test_mvhybrid.random"


def test_a_revision_names_its_weights_for_ever(hub, tmp_path):
    server, call = hub
    first, _ = exported(tmp_path / "1", seed=1)
    second, _ = exported(tmp_path / "2", seed=2)
    published(hub, first, revision="v1.0")
    published(hub, second, revision="v2.0")
    values = {
        name: call(load, f"hf-hub:{REPO}{name}", tmp_path / "cache").value["sha256"]
        for name in ("@v1.0", "@v2.0", "")
    }
    digests = [
        hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in (first, second)
    ]
    assert [values["@v1.0"], values["@v2.0"], values[""]] == [digests[0], digests[1], digests[1]]
    commits = dict(server.repositories[REPO].refs)
    outcome = call(publish, first, REPO, revision="v2.0", token=TOKEN)
    assert "the tag exists and names other files, and tags are never moved" in outcome.error
    assert server.repositories[REPO].refs == commits


def test_publishing_again_changes_nothing_but_verifies(hub, folder):
    server, _ = hub
    first = published(hub, folder, revision="v1.0")
    server.requests.clear()
    again = published(hub, folder, revision="v1.0")
    assert again["actions"] == ()
    assert again["commit"] == first["commit"]
    assert len(server.repositories[REPO].commits) == 1
    assert not [request for request in server.requests if request[0] in ("POST", "PUT")]
    assert server.seen("GET", "model.safetensors")


def test_a_tag_can_be_added_later(hub, folder):
    server, _ = hub
    first = published(hub, folder)
    again = published(hub, folder, revision="v1.0")
    assert again["actions"] == ("tag the commit v1.0",)
    assert server.repositories[REPO].refs == {"main": first["commit"], "v1.0": first["commit"]}


def test_a_dry_run_shows_everything_and_does_nothing(hub, folder):
    server, call = hub
    outcome = call(publish, folder, REPO, dry_run=True, private=True, revision="v1.0")
    actions = outcome.value["actions"]
    assert actions[0] == f"create private repository {REPO}"
    assert [action.split(",")[0] for action in actions[1:4]] == [
        "upload config.json",
        "upload model.safetensors",
        "upload README.md",
    ]
    assert actions[4] == "tag the commit v1.0"
    assert not outcome.value["verified"]
    assert server.repositories == {}
    assert {method for method, _, _ in server.requests} == {"HEAD"}


def test_the_published_card_names_its_repository(hub, folder):
    server, _ = hub
    summary = published(hub, folder)
    card = server.repositories[REPO].commits[summary["commit"]]["README.md"].decode()
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in card
    assert "ORGANISATION/NAME" not in card


def test_pickles_beside_the_weights_are_refused(hub, tmp_path):
    server, call = hub
    folder, _ = exported(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"")
    outcome = call(publish, folder, REPO, token=TOKEN)
    assert "pytorch_model.bin: files of this kind can run code" in outcome.error
    assert server.requests == []


def test_private_repositories_want_a_token(hub, folder, tmp_path):
    server, call = hub
    published(hub, folder, private=True)
    assert server.repositories[REPO].private
    with_token = call(load, f"hf-hub:{REPO}", tmp_path / "a", token=READ_TOKEN)
    assert with_token.value["sha256"]
    without = call(load, f"hf-hub:{REPO}", tmp_path / "b")
    assert "or it is private and no token was sent (401)" in without.error
    assert "HF_TOKEN" in without.error
    assert {"NotPublishedError", "HubError", "CheckpointError"} <= set(without.kinds)
    wrong = call(load, f"hf-hub:{REPO}", tmp_path / "c", token="hf_wrong")
    assert "refused the token (401)" in wrong.error
    assert "hf_wrong" not in wrong.error


def test_private_is_never_uploaded_to_a_public_repository(hub, folder):
    server, call = hub
    published(hub, folder)
    commits = len(server.repositories[REPO].commits)
    outcome = call(publish, folder, REPO, private=True, token=TOKEN)
    assert "`private=True` was asked for, but the repository is public" in outcome.error
    assert len(server.repositories[REPO].commits) == commits


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "publishing needs a token and none is set; log in with 'hf auth login'"),
        (READ_TOKEN, "the token has no right to it"),
        ("hf_wrong", "refused the token (401)"),
    ],
)
def test_tokens_that_may_not_write(hub, folder, token, message):
    server, call = hub
    outcome = call(publish, folder, REPO, token=token)
    assert message in outcome.error
    assert server.repositories == {}


def test_the_token_is_never_printed(hub, folder):
    server, call = hub
    server.faults.append(Fault("POST", "/commit/", status=500, body=f"cannot take {TOKEN}"))
    outcome = call(command, "publish", str(folder), "--repo", REPO, token=TOKEN)
    assert outcome.value == 1
    assert "uploading failed: the server failed (500" in outcome.printed
    assert TOKEN not in outcome.printed
    assert "Traceback" not in outcome.printed


def test_a_server_that_gives_back_other_bytes_is_found_out(hub, folder):
    server, call = hub
    server.faults.append(Fault("GET", "model.safetensors", flip=-1000))
    outcome = call(publish, folder, REPO, token=TOKEN)
    assert "was uploaded, but what the Hub gives back does not verify" in outcome.error
    assert "its sha256 is" in outcome.error


def test_a_repository_of_weights_and_configuration_that_do_not_belong_together(hub, folder, tmp_path):
    server, call = hub
    other, _ = exported(tmp_path, seed=3)
    summary = published(hub, folder)
    held = server.repositories[REPO].commits[summary["commit"]]
    held["model.safetensors"] = (other / "model.safetensors").read_bytes()
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    assert f"but config.json of {REPO} states" in outcome.error


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (dict(status=401), "nothing is published at .*, or it is private and no token was sent"),
        (dict(status=404), r"nothing is published at .* \(404\)"),
        (dict(status=500), r"the server failed \(500 from http://127"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_server_errors_fail_in_one_sentence_and_at_once(hub, folder, tmp_path, fault, message, file):
    server, call = hub
    published(hub, folder)
    server.faults.append(Fault("HEAD", file, **fault))
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    assert outcome.value is None
    assert re.search(message, outcome.error), outcome.error
    assert REPO in outcome.error
    assert "\n" not in outcome.error
    assert outcome.seconds < AT_ONCE_S


def test_a_server_that_says_404_and_no_more_is_published_to(hub, folder):
    server, _ = hub
    server.faults.append(Fault("HEAD", "resolve/main/(config|model)", status=404, times=1))
    assert published(hub, folder)["actions"][0] == f"create public repository {REPO}"


def test_a_server_that_is_no_hub(hub, tmp_path):
    server, call = hub
    server.faults.append(Fault("HEAD", "resolve", status=200))
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    assert "does not answer as a Hub does; check proxy and HF_ENDPOINT" in outcome.error


def test_gated_repositories_say_where_to_ask(hub, folder, tmp_path):
    server, call = hub
    published(hub, folder)
    server.faults.append(Fault("HEAD", "config.json", status=403, code="GatedRepo"))
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache", token=READ_TOKEN)
    assert f"the repository is gated; ask for access on {server.url}/{REPO}" in outcome.error


def test_a_dropped_connection_is_resumed(hub, folder, tmp_path):
    server, call = hub
    published(hub, folder)
    server.requests.clear()
    server.faults.append(Fault("GET", "model.safetensors", drop_after=300_000, times=1))
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    if outcome.error:
        assert "broke off" in outcome.error
        outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    assert outcome.error == ""
    assert outcome.value["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert len(server.seen("GET", "model.safetensors")) == 2


def test_a_connection_that_always_drops_fails_cleanly(hub, folder, tmp_path):
    server, call = hub
    published(hub, folder)
    server.faults.append(Fault("GET", "model.safetensors", drop_after=0))
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    assert outcome.value is None
    assert "broke off" in outcome.error
    assert "download again" in outcome.error
    server.faults.clear()
    assert call(load, f"hf-hub:{REPO}", tmp_path / "cache").error == ""


def test_a_failing_server_does_not_stop_cached_weights(hub, folder, tmp_path):
    server, call = hub
    published(hub, folder)
    assert call(load, f"hf-hub:{REPO}", tmp_path / "cache").error == ""
    server.faults.append(Fault("HEAD", "resolve", status=500))
    assert call(load, f"hf-hub:{REPO}", tmp_path / "cache").error == ""


def test_cached_weights_ask_for_no_content_again(hub, folder, tmp_path):
    server, call = hub
    published(hub, folder)
    call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    server.requests.clear()
    assert call(load, f"hf-hub:{REPO}", tmp_path / "cache").error == ""
    assert not server.seen("GET", ".")


def test_a_damaged_cache_is_found_and_force_download_heals_it(hub, folder, tmp_path):
    _, call = hub
    published(hub, folder)
    call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("models--*/snapshots/*/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "cache")
    assert str(path) in outcome.error
    assert "force_download=True" in outcome.error


def test_timms_own_create_model_verifies_the_weights_and_leaves_the_configuration_to_timm(
    hub, folder, tmp_path
):
    server, call = hub
    summary = published(hub, folder)
    name, cache = f"hf-hub:{REPO}", tmp_path / "cache"
    by_timm, by_us = call(load, name, cache, create="timm"), call(load, name, tmp_path / "cache2")
    assert by_timm.error == by_us.error == ""
    for fact in ("sha256", "tensors", "features"):
        assert by_timm.value[fact] == by_us.value[fact]
    assert by_us.value["hf_hub_id"] == f"{REPO}@{summary['commit']}"
    held = server.repositories[REPO].commits[summary["commit"]]
    (path,) = cache.glob("models--*/snapshots/*/model.safetensors")
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    outcome = call(load, name, cache, create="timm")
    assert "CheckpointError" in outcome.kinds
    assert "its sha256 is" in outcome.error
    del held["config.json"]
    outcome = call(load, name, tmp_path / "cache3", create="timm")
    assert {"EntryNotFoundError"} <= set(outcome.kinds)
    assert "CheckpointError" not in outcome.kinds
    assert "MissingFileError" in call(load, name, tmp_path / "cache4").kinds


@pytest.mark.parametrize("name", ["hf-hub:our-lab/nothing", "test_mvhybrid"])
def test_nothing_published(hub, tmp_path, name):
    _, call = hub
    outcome = call(load, name, tmp_path / "cache", token=READ_TOKEN)
    repo = "our-lab/nothing" if ":" in name else "timm-mvhybrid/test_mvhybrid.random"
    assert f"{repo}: " not in outcome.error
    assert repo in outcome.error
    assert "nothing is published at" in outcome.error
    assert "(404)" in outcome.error
    if ":" not in name:
        for remedy in ("timm-mvhybrid pretrain", "timm-mvhybrid export", f"publish DIR --repo {repo}"):
            assert remedy in outcome.error
    assert outcome.seconds < AT_ONCE_S


def test_missing_revision_and_missing_file(hub, folder, tmp_path):
    server, call = hub
    summary = published(hub, folder)
    assert "has no such revision" in call(load, f"hf-hub:{REPO}@v9", tmp_path / "a").error
    del server.repositories[REPO].commits[summary["commit"]]["model.safetensors"]
    outcome = call(load, f"hf-hub:{REPO}", tmp_path / "b")
    assert "model.safetensors: " in outcome.error
    assert "has no such file" in outcome.error


def test_command_line_takes_a_checkpoint_to_the_hub(hub, folder, tmp_path):
    server, call = hub
    checkpoint = str(folder.parent / "test_mvhybrid.checkpoint.safetensors")
    output = str(tmp_path / "out")
    arguments = ("export", checkpoint, "--model", "test_mvhybrid", "--output", output)
    assert call(command, *arguments).value == 0
    arguments = ("publish", output, "--repo", REPO, "--private", "--revision", "v1")
    planned = json.loads(call(command, *arguments, "--dry-run").printed)
    done = json.loads(call(command, *arguments, token=TOKEN).printed)
    assert planned["actions"] == done["actions"]
    assert (planned["dry_run"], done["verified"]) == (True, True)
    assert server.repositories[REPO].refs["v1"] == done["commit"]


def test_the_page_publishes_and_loads(hub, folder, tmp_path):
    server, call = hub
    text = (Path(__file__).parents[2] / "docs" / "guide" / "publish.md").read_text()
    names = {
        "ORGANISATION/NAME": REPO,
        "mvhybrid_small_patch16_256": "test_mvhybrid",
        "run/": str(folder.parent / "test_mvhybrid.checkpoint.safetensors"),
        "exported/": f"{tmp_path}/exported/",
        "local-dir:exported": f"local-dir:{tmp_path}/exported",
    }
    for before, after in names.items():
        text = text.replace(before, after)
    commands = text.split("```sh\n")[1].split("```")[0].splitlines()
    assert [line.split()[1] for line in commands] == ["export", "publish", "publish"]
    for line in commands:
        assert call(command, *line.split()[1:], token=TOKEN).value == 0
    assert server.repositories[REPO].private
    assert "v1.0" in server.repositories[REPO].refs
    code = text.split("```python")[1].split("```")[0].partition("\n")[2]  # after what stands beside the fence
    outcome = call(run_python, code, token=READ_TOKEN)
    assert outcome.error == ""
    assert len(server.seen("GET", "model.safetensors")) == 2


def test_without_network_cached_weights_load_and_others_fail_at_once(hub, folder, tmp_path):
    server, call = hub
    published(hub, folder)
    cache = tmp_path / "cache"
    sha256 = call(load, f"hf-hub:{REPO}", cache).value["sha256"]
    with server.paused():
        check_offline(call, cache, sha256, f"no connection to {server.url}")
    with hub_client(HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1") as offline:
        check_offline(offline, cache, sha256, "HF_HUB_OFFLINE forbids the network")


def check_offline(call, cache, sha256, reason):
    assert call(load, f"hf-hub:{REPO}", cache).value["sha256"] == sha256
    assert call(load, f"hf-hub:{REPO}", cache).seconds < AT_ONCE_S
    for name in ("hf-hub:our-lab/other", "test_mvhybrid"):
        outcome = call(load, name, cache)
        assert reason in outcome.error
        assert ("timm-mvhybrid pretrain" in outcome.error) == (name == "test_mvhybrid")
        assert "not in the cache" in outcome.error
        assert outcome.seconds < AT_ONCE_S


def test_the_environment_names_the_organisation(hub, folder, tmp_path):
    _, call = hub
    published(hub, folder, "their-lab/test_mvhybrid.random")
    outcome = call(load, "test_mvhybrid", tmp_path / "cache", organization="their-lab")
    assert outcome.value["hf_hub_id"] == "their-lab/test_mvhybrid.random"
