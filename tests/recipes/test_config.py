"""Every YAML composes; a mistyped key, option or value is refused with what was probably meant."""

from __future__ import annotations

import pytest

from recipes.choices import CONF, options
from recipes.config import compose, flatten, with_path
from recipes.help_text import describe
from recipes.supplies import check_recipe

FOLDERLESS = ("bench_rollout", "bench_train", "bench_eval")  # they write a file where results= says, and nothing else
REQUIRING = ("pretrain", "push", "compare", "data_stats")  # something that has no default
COMMANDS = sorted(path.stem for path in CONF.glob("*.yaml"))
# those of published models need files: test_published_recipes.py
EXPERIMENTS = [name for name in options("experiment") if name.split("/")[0] in ("mnist", "zoo")]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in REQUIRING])
def test_every_command_composes_as_it_is(command: str) -> None:
    config = compose(command, [])
    assert ("output_dir" in config) != (command in FOLDERLESS)
    assert dict(flatten(config))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    command = "pretrain" if experiment.startswith("zoo/") else "train"
    config = compose(command, [f"experiment={experiment}"])
    assert config.name == experiment
    assert config.output_dir == f"runs/{experiment}"
    if command == "train":
        check_recipe(config)  # its parts fit, as far as settings can tell


def test_a_study_takes_an_experiment_too() -> None:
    config = compose("study", ["experiment=mnist/cca", "seeds=[4]"])
    assert (config.output_dir, config.objective.beta, config.seeds) == ("runs/mnist/cca-study", 0.2, [4])


GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "experiment")


@pytest.mark.parametrize(
    "group",
    # every objective is composed by test_supplies.py, too
    [pytest.param(name, marks=pytest.mark.slow) if name == "objective" else name for name in GROUPS],
)
def test_every_option_composes(group: str) -> None:
    command = "eval" if group in ("sampling", "search") else "train"
    required = {
        ("generator", "llamagen"): ["generator.checkpoint=x.pt"],
        ("generator", "llamagen-t2i"): ["generator.checkpoint=x.pt"],
        ("generator", "janus"): ["generator.checkpoint=x"],
        ("generator", "infinity"): ["generator.checkpoint=x.pth", "generator.tokenizer_checkpoint=y.pth"],
        ("generator", "var"): ["generator.checkpoint=x.pth", "generator.tokenizer_checkpoint=y.pth"],
        ("data", "codes"): ["data.codes=x.safetensors"],
        ("data", "images"): ["data.images=x"],
        ("evaluation", "own"): ["evaluation.protocol=mine.yaml"],
        ("search", "best_of_n"): ["search.reward.rewards=[]"],
        ("search", "tts"): ["search.reward.rewards=[]", "search.steps=[]"],
    }
    for option in options(group):
        assert compose(command, [f"{group}={option}", *required.get((group, option), [])])


def test_every_experiment_says_how_to_run_it() -> None:
    for experiment in EXPERIMENTS:
        text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
        assert f"experiment={experiment}" in text, f"{experiment}: its header lacks the command"


def test_experiments_change_what_they_say() -> None:
    config = compose("train", ["experiment=mnist/cca", "objective.beta=0.3", "trainer.max_steps=7"])
    assert config.objective.beta == 0.3
    assert config.trainer.max_steps == 7
    assert config.objective._target_ == "align.objectives.cca"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=mnist/cca", "objective.betta=1"], r"unknown key 'objective.betta'; near names: objective.beta"),
        (["lambda_=3"], r"unknown key 'lambda_'; near names: objective.lambda_"),
        (
            ["experiment=mnist/ccaa"],
            r"unknown experiment 'mnist/ccaa'; known: .*mnist/best_of_n, .*Did you mean mnist/cca\?",
        ),
        (["objective=cda"], r"unknown objective 'cda'; known: best_of_n, cca, .*Did you mean cca"),
        (["trainer.max_steps=many"], r"trainer.max_steps is 100 by default, a number; got 'many'"),
        (["reference=cached"], r"reference is a group of settings; got 'cached'. Set one of them: reference.kind, "),
        (["kl=null"], r"kl is a group of settings; got None. Set one of them: kl.coefficient"),
        (["rollout.sampling=2"], r"rollout.sampling is a group of settings; got 2. .*rollout.sampling.guidance_scale"),
        (
            ["trainer.gradient_checkpointing=some"],
            r"trainer.gradient_checkpointing is False by default, one of false, selective, true; got 'some'",
        ),
        (["overwrite=maybe"], r"overwrite is False by default, true or false; got 'maybe'"),
        (["max_steps"], r"cannot read 'max_steps': settings are key=value"),
        (["data=codes"], r"required and not given: data.codes"),
        (
            ["experiment=zoo/mnist-llamagen"],
            r"is not for `align train`; try: align pretrain experiment=zoo/mnist-llamagen",
        ),
    ],
)
def test_mistakes_are_refused_with_a_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose("train", overrides)


def test_a_part_of_a_section_may_be_turned_off_or_set_at_once() -> None:
    assert compose("train", ["actions.perceptual=null"]).actions.perceptual is None
    config = compose("train", ["actions.perceptual={kind: lpips, weights: vgg.pth}"])
    assert config.actions.perceptual == {"kind": "lpips", "weights": "vgg.pth"}


def test_help_lists_choices_and_settings() -> None:
    text = describe("train")
    assert "objective={best_of_n,cca," in text
    assert "  objective.beta=0.02" in text
    assert "  trainer.learning_rate=" in text
    # as a person types them, with what the YAML says of them: in the command's own file, and in a group's
    assert "  reference.sync_steps=null  # of frozen: every so many steps it moves to mixup" in text
    assert "  trainer.sample_every=20  # steps between sample grids; 0: none" in text
    assert "hydra" not in text


@pytest.mark.parametrize("command", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_command_tells_its_settings(command: str) -> None:
    settings = describe(command).partition("settings and their defaults:\n")[2].splitlines()
    assert len(settings) >= 5
    assert all(line.startswith("  ") and "=" in line for line in settings)


def test_help_shows_the_settings_of_a_choice() -> None:
    text = describe("train", ["generator=llamagen-t2i", "data=images", "seed=3", "objective=nothing", "--help"])
    assert "  generator.text_encoder=null  # a folder with T5 (flan-t5-xl), or with caption features" in text
    assert "  data.images=???  # an image folder, a .jsonl" in text
    assert "  seed=1  # data order" in text
    # a command that inherits another's settings, and one without groups
    assert "  kl.where=loss  # loss: a term per token" in describe("study")
    assert describe("data_captions").startswith(
        "settings and their defaults:\n  output_dir=runs/captions\n  source=null  # a"
    )


def test_the_global_batch_decides_the_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ["trainer.global_batch_size=96", "trainer.per_device_train_batch_size=8"]
    assert compose("train", batch).trainer.gradient_accumulation_steps == 12
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert compose("train", batch).trainer.gradient_accumulation_steps == 3
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(
        ValueError,
        match=r"=96 does not divide among 5 process.*start one of 1, 2, 3, 4, 6, 8 .*or set .* to 95 or 100$",
    ):
        compose("train", batch)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ValueError, match="set trainer.per_device_train_batch_size to one of 1, 2, 4, 8$"):
        compose("train", [batch[0], "trainer.per_device_train_batch_size=5"])
    with pytest.raises(ValueError, match="global_batch_size=96 decides the accumulation"):
        compose("train", [*batch, "trainer.gradient_accumulation_steps=2"])


def test_a_path_by_itself_needs_no_name_and_no_quotes() -> None:
    words = ["my files (1), a.txt", "max_length=7", "--help"]
    assert with_path(words, "source") == ['source="my files (1), a.txt"', *words[1:]]
    assert compose("data_captions", with_path(words[:2], "source")).source == words[0]
    assert with_path(["images/*.tar"], "source") == ["source=images/*.tar"]


@pytest.mark.parametrize("value", ["false", "selective", "true"])
def test_checkpointing_is_a_switch_with_a_word_between(value: str) -> None:
    config = compose("train", [f"trainer.gradient_checkpointing={value}"])
    assert str(config.trainer.gradient_checkpointing).lower() == value
