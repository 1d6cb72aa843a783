"""Tiny language models for a Trainer, their data, and an oracle that knows every token's loss."""

import lightning.pytorch as L
import pytorch_lightning
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_pce import PercentileCEMixin
from tests.helpers.summaries import PERCENTILES, expected_log

VOCABULARY, IGNORED = 11, -100
# Before 2.6 the Trainer of pytorch_lightning refuses callbacks of lightning.pytorch.
TAKES_FOREIGN_CALLBACKS = Version(pytorch_lightning.__version__) >= Version("2.6")


def make_batches(count, seed=0, sequences=2, length=5):
    """Batches of token ids and labels; a fifth of the labels does not count."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        shape = (sequences, length)
        labels = torch.randint(VOCABULARY, shape, generator=generator)
        labels[torch.rand(shape, generator=generator) < 0.2] = IGNORED
        labels[0, 0] = 0
        batches.append({"ids": torch.randint(VOCABULARY, shape, generator=generator), "labels": labels})
    return batches


def all_ignored(batches):
    return [{**batch, "labels": torch.full_like(batch["labels"], IGNORED)} for batch in batches]


def loader(batches):
    return DataLoader(batches, batch_size=None)


def make_loader(count, seed=0):
    return loader(make_batches(count, seed))


class Stream(IterableDataset):
    """Batches one after the other, how many nobody knows."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Sized(Dataset):
    """Batches of which Lightning knows how many there are."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def stream(batches):
    return loader(Stream(batches))


def sized(batches):
    return loader(Sized(batches))


class ResumableLoader(DataLoader):
    """Its state is how many batches it has given, and the next iteration goes on there."""

    first = given = 0

    def __iter__(self):
        first, self.first = self.first, 0
        self.given = first
        for batch in list(super().__iter__())[first:]:
            self.given += 1
            yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.first = state["given"] % len(self)


class TinyLM:
    """The part of the models that has nothing to do with percentiles; mixed into a LightningModule."""

    def make_layers(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(VOCABULARY, 8)
            self.head = torch.nn.Linear(8, VOCABULARY)

    def forward(self, batch):
        return 3 * self.head(self.embedding(batch["ids"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class PlainLM(TinyLM, L.LightningModule):
    """The same model without the mixin."""

    def __init__(self):
        super().__init__()
        self.make_layers()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch).flatten(0, 1), batch["labels"].flatten())

    def validation_step(self, batch, batch_idx):
        pass


def make_lm(lightning_module):
    """A model that measures validation and test, of one of the two LightningModules."""

    class LitLM(TinyLM, PercentileCEMixin, lightning_module):
        def __init__(self, **configuration):
            super().__init__()
            if configuration:
                self.configure_percentile_ce(**configuration)
            self.make_layers()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch).flatten(0, 1), batch["labels"].flatten())

        def validation_step(self, batch, batch_idx):
            self.update_percentile_ce(self(batch), batch["labels"])

        def test_step(self, batch, batch_idx):
            self.update_percentile_ce(self(batch), batch["labels"])

    return LitLM


LitLM = make_lm(L.LightningModule)


class TrainedLM(LitLM):
    """Trains on what the mixin returns."""

    def training_step(self, batch, batch_idx):
        return self.update_percentile_ce(self(batch), batch["labels"])


class Returning(PlainLM):
    """Returns what ``give(logits, batch)`` says, from validation_step and test_step."""

    def __init__(self, give=lambda logits, batch: {"logits": logits, "labels": batch["labels"]}):
        super().__init__()
        self.give = give

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return self.give(self(batch), batch)

    test_step = validation_step


class ReturningLosses(Returning):
    """Returns the losses that training sees, which it keeps."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        losses, mask = losses_and_mask(self(batch), batch)
        self.seen.append(losses.detach()[mask])
        return {"loss": losses[mask].mean(), "losses": losses, "mask": mask, "logits": torch.zeros(1)}


def losses_and_mask(logits, batch):
    losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=IGNORED)
    return losses, batch["labels"] != IGNORED


def losses_with_mask(logits, batch):
    losses, mask = losses_and_mask(logits, batch)
    return {"losses": losses, "mask": mask}


class LoadersLM(LitLM):
    """Takes the dataloader's index, as Lightning wants it with several."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.update_percentile_ce(self(batch), batch["labels"], dataloader_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.update_percentile_ce(self(batch), batch["labels"], dataloader_idx)


class LevelsLM(LitLM):
    """Its validation losses are scripted: what the data says, times the epoch's level."""

    def __init__(self, levels, **configuration):
        super().__init__(**configuration)
        self.levels = levels

    def validation_step(self, batch, batch_idx):
        self.update_percentile_ce(losses=scripted_losses(batch) * self.levels[self.current_epoch])


def scripted_losses(batch):
    return 1 + batch["ids"].float() / VOCABULARY


def token_losses(module, batch):
    """The losses of the tokens that count, by torch's own function."""
    with torch.no_grad():
        logits, labels = module(batch).detach().float().flatten(0, 1), batch["labels"].flatten()
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)[labels != IGNORED]


class Oracle(L.Callback):
    """Scores every batch itself, and keeps what was logged beside it.

    ``runs`` holds one pair (losses by dataloader, logged metrics) for each validation or test, and ``epochs``
    one for each epoch of training; the sanity check is in neither.
    """

    def __init__(self):
        self.runs, self.epochs = [], []
        self.batches = 0  # of validation and test, those of the sanity check too
        self._losses, self._train_losses = {}, []

    @property
    def single(self):
        """The runs of one dataloader."""
        return [(losses.get(0, torch.empty(0)), logged) for losses, logged in self.runs]

    def on_validation_start(self, trainer, module):
        self._losses = {}

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.batches += 1
        self._losses.setdefault(dataloader_idx, []).append(token_losses(module, batch))

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            losses = {index: torch.cat(parts) for index, parts in self._losses.items()}
            self.runs.append((losses, numbers(trainer.callback_metrics)))

    on_test_start, on_test_batch_end = on_validation_start, on_validation_batch_end
    on_test_end = on_validation_end

    def on_train_epoch_start(self, trainer, module):
        self._keep_epoch(trainer)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._train_losses.append(token_losses(module, batch))

    def on_train_end(self, trainer, module):
        self._keep_epoch(trainer)

    def _keep_epoch(self, trainer):
        # Not in on_train_epoch_end: whoever reads metrics there computes them before the module logs.
        if self._train_losses:
            self.epochs.append((torch.cat(self._train_losses), numbers(trainer.callback_metrics)))
        self._train_losses = []


def numbers(metrics):
    return {name: float(value) for name, value in metrics.items()}


def logged_under(metrics, prefix):
    return {name: value for name, value in metrics.items() if name.startswith(f"{prefix}_ce_")}


def assert_logged(metrics, losses, prefix="val", percentiles=PERCENTILES, tolerance=1e-6):
    """Exactly the promised names stand under the prefix, with the values of these token losses."""
    ours, promised = logged_under(metrics, prefix), expected_log(losses, prefix, percentiles)
    assert sorted(ours) == sorted(promised)
    wrong = {
        name: (value, promised[name])
        for name, value in ours.items()
        if not abs(value - promised[name]) <= tolerance * max(1, abs(promised[name]))
    }
    assert not wrong, f"logged and promised differ: {wrong}"


def make_trainer(tmp_path, *callbacks, **arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    arguments = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, **quiet, **arguments}
    if any("Checkpoint" in type(callback).__name__ for callback in callbacks):
        arguments["enable_checkpointing"] = True
    pytorch_lightning = arguments.pop("namespace", L)
    return pytorch_lightning.Trainer(
        default_root_dir=tmp_path, callbacks=list(callbacks), enable_model_summary=False, **arguments
    )


def fit(tmp_path, module, *callbacks, train=2, val=3, **arguments):
    """Fit on fixed data and return the trainer; ``train`` and ``val`` are loaders or numbers of batches."""
    trainer = make_trainer(tmp_path, *callbacks, **arguments)
    train = make_loader(train, seed=1) if isinstance(train, int) else train
    val = make_loader(val, seed=2) if isinstance(val, int) else val
    trainer.fit(module, train, val)
    return trainer
