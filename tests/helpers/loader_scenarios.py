"""Two ranks whose evaluation dataloaders or monitors do not fit, one scenario after the other."""

import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader

from lightning_pce import PercentileCECallback
from tests.helpers import lit_modules as lit
from tests.helpers.lightning_scenarios import RANK, fit, observed, own, trainer_on_ranks, validate


def data(loaders, hook="val_dataloader"):
    """A datamodule whose hook gives what the function gives."""
    module = L.LightningDataModule()
    setattr(module, hook, loaders)
    return module


def several(*batches):
    """One sized dataloader for each number of batches."""
    return [lit.sized(own(count)) for count in batches]


def error_of(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


def evaluate(how, loaders, module=None, *callbacks, **arguments):
    """The error of a validation or a test whose dataloaders the rank's own function gives."""
    trainer = trainer_on_ranks(*callbacks, **arguments)
    given = data(loaders, "test_dataloader" if how == "test" else "val_dataloader")
    return error_of(getattr(trainer, how), module or lit.LoadersLM(), datamodule=given, verbose=False)


def numbers(how, first, second, *callbacks):
    """Rank 0 has the first number of dataloaders, rank 1 the second."""
    module = lit.Returning() if callbacks else lit.LoadersLM()
    return evaluate(how, lambda: several(*[2] * (first, second)[RANK]), module, *callbacks)


def in_fit(first, second):
    loaders = several(*[2] * (first, second)[RANK])
    return error_of(trainer_on_ranks().fit, lit.LoadersLM(), lit.sized(own(2)), loaders)


def after_a_reload():
    """Rank 1 gives another number of dataloaders from the second epoch on."""
    epochs = []

    def loaders():
        epochs.append(len(epochs))
        return several(*[2] * (2 if RANK and len(epochs) > 1 else 1))

    given = data(loaders)
    given.train_dataloader = lambda: lit.sized(own(2))
    trainer = trainer_on_ranks(
        max_epochs=3, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, limit_val_batches=2
    )
    return {**error_of(trainer.fit, lit.LoadersLM(), datamodule=given), "epoch": trainer.current_epoch}


def other_numbers_on_both():
    """Both ranks have one, two and one dataloaders in the three epochs; rank 1 has a batch more in each."""
    numbers = iter((1, 2, 1))
    given = data(lambda: several(1 + RANK, 2 + RANK)[: next(numbers)])
    given.train_dataloader = lambda: lit.sized(own(2))
    oracle = lit.Oracle()
    arguments = {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 0}
    trainer_on_ranks(oracle, max_epochs=3, **arguments).fit(lit.LoadersLM(), datamodule=given)
    return {"runs": observed(oracle)}


def one_without_a_length():
    """The first of two dataloaders has a length on rank 0 only: nothing is wrong with that."""
    first = lit.sized(own(2)) if RANK == 0 else lit.stream(own(1))
    return validate([first, lit.sized(own(1 + RANK))], lit.LoadersLM())


def combined_on_one_rank():
    loaders = several(2, 2)
    return evaluate("validate", lambda: CombinedLoader(loaders, "max_size") if RANK else loaders)


def broken_on(rank):
    def loaders():
        if rank in (RANK, "both"):
            raise FileNotFoundError("no shard here")
        return several(2)

    return evaluate("validate", loaders)


def too_small_a_fraction_of_the_first():
    """Lightning refuses the first of two dataloaders on rank 1, where a tenth of it is less than a batch."""
    return evaluate("validate", lambda: several(20 - 15 * RANK, 20), limit_val_batches=0.1)


def monitor(action):
    """A name that is not logged is monitored, and warnings of that are shown or raised."""
    keep = ModelCheckpoint(Path(sys.argv[1]) / action, monitor="val_ce_p5O", save_on_train_epoch_end=False)
    loaders = {"train": lit.sized(own(2)), "val": lit.sized(own(2))}
    with warnings.catch_warnings():
        warnings.filterwarnings(action, ".*is not logged in this fit")
        if action == "error":
            return error_of(fit, lit.LitLM(), *loaders.values(), keep)
        keep.save_top_k = 0  # else Lightning ends the run when it looks for the value
        return fit(lit.LitLM(), *loaders.values(), keep)


SCENARIOS = {
    "monitor_as_error": lambda: monitor("error"),
    "monitor_as_warning": lambda: monitor("always"),
    "two_and_one": lambda: numbers("validate", 2, 1),
    "one_and_three": lambda: numbers("validate", 1, 3),
    "none_and_one": lambda: numbers("validate", 0, 1),
    "test_two_and_one": lambda: numbers("test", 2, 1),
    "callback_two_and_one": lambda: numbers("validate", 2, 1, PercentileCECallback()),
    "fit_two_and_one": lambda: in_fit(2, 1),
    "after_a_reload": after_a_reload,
    "other_numbers_on_both": other_numbers_on_both,
    "combined": combined_on_one_rank,
    "broken_on_0": lambda: broken_on(0),
    "broken_on_1": lambda: broken_on(1),
    "broken_on_both": lambda: broken_on("both"),
    "fraction_of_two": too_small_a_fraction_of_the_first,
    "without_a_length": one_without_a_length,
    "no_loader_anywhere": lambda: numbers("validate", 0, 0),
    "after_errors_of_loaders": lambda: validate(lit.sized(own(3))),
}
