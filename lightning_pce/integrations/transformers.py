"""Percentile CE in the Trainer of Hugging Face transformers.

A mixin, because ``compute_loss`` sees logits and labels before anything is gathered, and what
``evaluation_loop`` returns is what the Trainer logs and chooses by. ``compute_metrics`` gets tensors gathered
in every step, and nothing of an empty set; a callback's ``on_evaluate`` comes after logging.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_pce._checks import warn_once
from lightning_pce._names import DEFAULT_PERCENTILES
from lightning_pce.integrations._model_outputs import PassedBy, first_rows, length_of
from lightning_pce.integrations.loss_func import loss_func
from lightning_pce.integrations.settings import Settings
from lightning_pce.integrations.stages import StageMetrics
from lightning_pce.tokens.batch import score_tokens
from lightning_pce.tokens.labels import NONE_IGNORED, Logits, documents_by_content, shifted

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer

    from lightning_pce.integrations._evaluation_history import EvaluationHistory
else:
    # A plain class: any subclass of transformers' Trainer may follow.
    _Trainer = object

__all__ = ["PercentileCETrainerMixin", "loss_func"]

# Values of these are better the lower they are. Entropy and max_prob say how sure a model is, not how right.
_BETTER_IF_LOWER = ("ce", "rank", "log_rank", "margin")


class PercentileCETrainerMixin(_Trainer):
    """Mean and percentiles of per-token cross-entropy from ``trainer.evaluate()``, in nats.

    Stands before ``transformers.Trainer``, or a subclass of it, in the list of base classes. Every evaluation
    then gives ``eval_ce_mean``, ``eval_ce_p50`` ... over the tokens of all processes, for
    ``metric_for_best_model``, ``EarlyStoppingCallback`` and every logger; several evaluation sets give
    ``eval_web_ce_p50`` ..., and ``predict`` gives ``test_ce_p50`` .... They are NaN if no token counts.

    For this no logits are gathered or kept: the tokens enter a digest of 16 KB, and one ``all_gather`` merges
    those of all processes at the end. (The Trainer itself gathers and keeps them in ``predict``, and for a
    ``compute_metrics``; names that your ``compute_metrics`` gives, such as ``eval_accuracy``, stay as it gave
    them.) Samples that accelerate repeats to give all processes equal batches count once; where they can't be
    told apart a warning says so. ``eval_loss`` is another mean, that of batch means.

    The logits are those that ``compute_loss`` returns beside the loss, or else those that the model gives in
    it: it never runs once more. Where a fused head gives log-probabilities instead, as in trl's SFTTrainer,
    these are taken, for the cross-entropy alone. Virtual tokens of peft's prompt tuning are not scored.

    Labels are shifted by one, as causal language models want it, but not for encoder-decoder models. Masked
    language models and classification need ``configure_percentile_ce(shift=False)``.

    The best model by ``eval_ce_p50`` is that of the lowest. Where ``greater_is_better`` is left out
    ``TrainingArguments`` makes it True unless the name ends in "loss", which would keep the worst: ``train``
    sets it False for cross-entropies, ranks and margins, with a warning. Probabilities and accuracies are
    better if greater and stay as they are. So do entropy and ``max_prob``, which say how sure a model is, not
    how right: give ``greater_is_better`` for these. ``hyperparameter_search`` optimises by default what it
    would without this class (transformers sums all metrics); ``compute_objective`` may return one of ours.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        >>> class PercentileTrainer(PercentileCETrainerMixin, Trainer):
        ...     pass
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1))
        >>> rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(50, (5, 8))]
        >>> arguments = TrainingArguments(tempfile.mkdtemp(), report_to="none", use_cpu=True)
        >>> trainer = PercentileTrainer(model, arguments, eval_dataset=rows)
        >>> trainer.configure_percentile_ce(percentiles=(50, 95))
        >>> [name for name in trainer.evaluate() if "_ce_" in name]
        ['eval_ce_mean', 'eval_ce_p50', 'eval_ce_p95', 'eval_ce_trimmed_mean']
    """

    percentile_ce: StageMetrics
    _percentile_ce_shift: bool | None = None
    _percentile_ce_ignored = -100
    _percentile_ce_loader: Any = None  # of the evaluation that is running
    _percentile_ce_saw_labels = False
    _percentile_ce_history: EvaluationHistory | None = None
    _percentile_ce_unwritten: dict[str, Collection[str]]  # names of our values by the prefix of an evaluation
    _percentile_ce_names: Collection[str] = ()  # of all values that evaluations have given so far

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(PercentileCETrainerMixin)]:
            if "evaluation_loop" in vars(base) and not issubclass(base, PercentileCETrainerMixin):
                raise TypeError(
                    f"Expected PercentileCETrainerMixin to stand before {base.__name__} in the list of base "
                    f"classes of {cls.__name__} but it stands behind, where it would measure nothing."
                )

    def configure_percentile_ce(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        statistics: Sequence[str] = ("ce",),
        ignore_index: int | None = -100,
        shift: bool | None = None,
        compression: int = 1024,
        error_bars: bool = False,
        level: float = 0.95,
        log_intervals: bool = False,
        history: bool | str | os.PathLike[str] = False,
    ) -> None:
        """Choose what is measured; optional, and called before the first evaluation.

        Args:
            percentiles: which, each in [0, 100].
            statistics: ``"ce"`` and others, as in
                :meth:`lightning_pce.PercentileCEMixin.configure_percentile_ce`, for ``eval_entropy_p50`` ...,
                all in the same collective.
            ignore_index: the label of tokens that do not count; None: all count.
            shift: the labels are the inputs, as causal language models of transformers want them. False for
                models whose labels stand where their logits do: masked language models, classification. Left
                out: False for encoder-decoder models, such as T5, by ``model.config``, True for all others,
                with a warning if the logits of a first batch say otherwise.
            compression: centroids of each digest, see :class:`lightning_pce.PercentileCrossEntropy`.
            error_bars: also count tokens by document, for intervals: the batch has ``document``, integers of
                sequences or tokens (the model does not see them; set ``remove_unused_columns=False``), or
                each row is one.
            level: the probability that an interval holds the true value.
            log_intervals: also give the ends of the intervals, ``eval_ce_p50_low``, ``eval_ce_p50_high`` ...
            history: also write each evaluation to a file, from the first process, for
                :meth:`lightning_pce.History.load`: its path, or True for ``percentile_history.jsonl`` in
                ``output_dir``.

        Raises:
            ValueError: if an argument is impossible.
        """
        # The labels are shifted here, not by the metric: a batch may bring shifted ones. So one label must be
        # ignored, that of the last position.
        ignored = NONE_IGNORED if ignore_index is None else ignore_index
        settings = Settings(
            percentiles=percentiles,
            statistics=statistics,
            ignore_index=ignored,
            compression=compression,
            error_bars=error_bars,
            level=level,
            log_intervals=log_intervals,
        )
        self.percentile_ce = StageMetrics(settings)
        self._percentile_ce_shift, self._percentile_ce_ignored = shift, ignored
        self._percentile_ce_history = None
        if history is not False:
            from lightning_pce.integrations._evaluation_history import EvaluationHistory

            path = None if history is True else history
            self._percentile_ce_history = EvaluationHistory(path, self.args.output_dir)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; the best model by a cross-entropy is that of the lowest, see the class."""
        sets = [f"{name}_" for name in self.eval_dataset] if isinstance(self.eval_dataset, Mapping) else []
        name = self._prefer_lower(f"eval_{each}" for each in ("", *sets))
        callbacks: list[Any] = []
        if name is not None:
            from lightning_pce.integrations._best_checkpoint import LowestIsBest

            callbacks.append(LowestIsBest(name))
        if self._percentile_ce_history is not None:
            given = isinstance(resume_from_checkpoint, str | os.PathLike)
            self._percentile_ce_history.resumed_from = str(resume_from_checkpoint) if given else None
            callbacks.append(self._percentile_ce_history)
        for callback in callbacks:
            self.add_callback(callback)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for callback in callbacks:
                self.remove_callback(callback)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's own; written to the history, if there is one."""
        self._percentile_ce_unwritten = {}
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        unwritten, self._percentile_ce_unwritten = self._percentile_ce_unwritten, {}
        for name, ours in unwritten.items():  # of several sets each was written by its own call
            if self.is_world_process_zero():
                self._write_evaluation(metrics, name, ours)
        return metrics

    def _write_evaluation(self, metrics: Mapping[str, Any], name: str, ours: Collection[str]) -> None:
        assert self._percentile_ce_history is not None
        protocol = {"ignore_index": self._percentile_ce_ignored, "shift": self._shifts_labels()}
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        of_checkpoint = None if self.is_in_train else best
        self._percentile_ce_history.write(
            self.percentile_ce, name, metrics, ours, protocol, self.state, of_checkpoint
        )

    def hyperparameter_search(
        self,
        hp_space: Callable[..., Any] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The Trainer's own; its default objective, the sum of all metrics, leaves the percentiles out."""
        from transformers.trainer_utils import default_compute_objective

        def without_percentiles(metrics: dict[str, float]) -> float:
            others = {name: value for name, value in metrics.items() if name not in self._percentile_ce_names}
            return default_compute_objective(others)

        default = compute_objective is None or compute_objective is default_compute_objective
        objective = without_percentiles if default else compute_objective
        return super().hyperparameter_search(hp_space, objective, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's own, with the percentiles among its metrics."""
        if not hasattr(self, "percentile_ce"):
            self.configure_percentile_ce()
        self.percentile_ce.forget()  # an evaluation that ended by an error
        self.percentile_ce.open("val", 1, self.args.device)
        self._percentile_ce_loader, self._percentile_ce_saw_labels = dataloader, False
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._percentile_ce_loader = None
        if output.num_samples and not self._percentile_ce_saw_labels:
            self._warn_of_percentile_ce(
                "is NaN, for it saw no labels: the batches hold no `labels`; or `label_names` of the "
                "TrainingArguments lacks them; or a compute_loss or prediction_step of your own does not "
                "call super(); or Seq2SeqTrainer generates instead of scoring (predict_with_generate=True)."
            )
        assert output.metrics is not None
        results = self.percentile_ce.results("val")  # a collective: in any case
        named = {f"{metric_key_prefix}_{name}": float(value) for name, value in results.items()}
        self._percentile_ce_names = {*self._percentile_ce_names, *(named.keys() - output.metrics.keys())}
        if self._percentile_ce_history is not None:
            ours = named.keys() - output.metrics.keys()
            self._percentile_ce_unwritten = {metric_key_prefix: ours}
        output.metrics.update({**named, **output.metrics})
        if self.is_in_train:  # a prefix that only an evaluate of the user's own knows
            self._prefer_lower([f"{metric_key_prefix}_"])
        return output

    def _prefer_lower(self, prefixes: Iterable[str]) -> str | None:
        """Make the Trainer prefer lower values if it chooses the best model by one that is better if lower.

        True is always wrong then, whether TrainingArguments or the user has set it.

        Returns:
            The name of the value that the Trainer chooses by, with its prefix; None if it is no such value.
        """
        chosen = self.args.metric_for_best_model
        if chosen is None:
            return None
        settings = self.percentile_ce.settings if hasattr(self, "percentile_ce") else Settings()
        name = chosen if chosen.startswith("eval_") else f"eval_{chosen}"  # as the Trainer does
        lower = [each for each in settings.statistics if each in _BETTER_IF_LOWER]
        ours = {f"{at}{each}_{key}" for at in prefixes for each in lower for key in settings.keys}
        if name not in ours:
            return None
        if self.args.greater_is_better:
            self.args.greater_is_better = False
            self._warn_of_percentile_ce(
                f"sets greater_is_better=False: metric_for_best_model={chosen!r} is better the lower it is. "
                "True, which TrainingArguments takes if it is left out, would keep the worst model."
            )
        return name

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's own; in an evaluation the tokens of the batch enter the percentiles."""
        arguments = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        document = inputs.get("document") if self._counts_documents() else None
        if document is not None:  # which no model knows
            inputs = {name: value for name, value in inputs.items() if name != "document"}
        labels = None if self._percentile_ce_loader is None else inputs.get("labels")
        if labels is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **arguments)
        if "skip_logits" in inputs:  # what the Trainer asks of Liger's models in evaluations
            inputs = {**inputs, "skip_logits": False}
        # Before the loss: label smoothing takes the labels out of the inputs.
        batch = dict(inputs)
        virtual = self._virtual_tokens()
        padded = (*labels.shape[:-1], labels.shape[-1] + virtual) if labels.ndim else ()
        passed = PassedBy(tuple(labels.shape), padded)
        self._check_labels(labels)
        # Not by asking for the outputs: for these trl's trainers run the model once more.
        hook = model.register_forward_hook(passed.look)
        try:
            result = super().compute_loss(model, inputs, return_outputs=return_outputs, **arguments)
        finally:
            hook.remove()
        if return_outputs:
            passed.take(result[1])
        self._measure({**batch, "document": document}, passed, result[0] if return_outputs else result)
        return result

    def _counts_documents(self) -> bool:
        return hasattr(self, "percentile_ce") and self.percentile_ce.settings.error_bars

    def _measure(self, batch: Mapping[str, Any], passed: PassedBy, loss: Any) -> None:
        """Add the batch to the percentiles, from the logits or losses that have passed by."""
        labels: Tensor = batch["labels"]
        rows = self._new_rows(self._percentile_ce_loader, len(labels))
        if passed.logits is None:
            losses, mask = self._losses_instead_of_logits(passed, labels)
            document = self._documents_beside(losses, batch, rows)
            self.percentile_ce.measure("val", losses=losses[:rows], mask=mask[:rows], document=document)
            self._percentile_ce_saw_labels = True
            return
        if passed.calls > 1:
            self._warn_of_percentile_ce(
                f"is of the first of {passed.calls} calls of the model in compute_loss that gave logits. If "
                "another one is meant return its outputs beside the loss."
            )
        logits = first_rows(passed.logits, rows)
        own = self._labels_by_position(batch, logits)[:rows]
        document = self._documents_by_position(batch, logits, rows)
        mean = self.percentile_ce.measure("val", logits, own, document=document)
        if not self._percentile_ce_saw_labels:  # of the first batch only: comparing waits for the device
            self._check_shift(batch, logits, mean, loss)
        self._percentile_ce_saw_labels = True

    def _losses_instead_of_logits(self, passed: PassedBy, labels: Tensor) -> tuple[Tensor, Tensor]:
        others = self.percentile_ce.settings.statistics[1:]
        if passed.losses is not None and not others:
            if self._percentile_ce_ignored != -100:
                raise ValueError(
                    f"Expected ignore_index=-100 but got {self._percentile_ce_ignored}: the model gives "
                    f"{passed.seen[0]} and no logits, and has left out the tokens labelled -100."
                )
            return passed.losses
        expected = f"Expected the model to return `logits` for labels {tuple(labels.shape)} but got "
        if passed.losses is not None:
            raise ValueError(
                f"{expected}{passed.seen[0]}, of which only the cross-entropy can be had. Leave "
                f"{', '.join(others)} out of `statistics`."
            )
        seen = "; ".join(dict.fromkeys(passed.seen)) or "nothing: it was not called"
        raise ValueError(
            f"{expected}{seen}. Percentile CE needs them in evaluations: switch off what computes the loss "
            "without them (trl 1.10: SFTConfig(loss_type='nll')). Positions that a prompt adds in front are "
            "known of peft's models only: others should return logits[:, added:]."
        )

    def _check_labels(self, labels: Tensor) -> None:
        if self._shifts_labels() and labels.ndim < 2:
            raise ValueError(
                f"Expected `labels` to be [batch, sequence] but got {list(labels.shape)}: percentile CE "
                "shifts them by one, as causal language models want it. If each label belongs to the logits "
                "where it stands, as in classification, call configure_percentile_ce(shift=False)."
            )

    def _labels_by_position(self, batch: Mapping[str, Any], logits: Logits, shift: bool = True) -> Tensor:
        """The label of each position of the logits, on their device."""
        labels: Tensor = batch["labels"]
        given: Tensor | None = batch.get("shift_labels")  # where each process has a part of the sequence
        shift = shift and self._shifts_labels()
        if shift and given is not None:
            labels, shift = given, False
        return _by_position(labels, logits, self._percentile_ce_ignored, shift)

    def _documents_beside(self, losses: Tensor, batch: Mapping[str, Any], rows: int) -> Tensor | None:
        """Ids of documents for losses ``[B, t]`` of a model that has shifted the labels itself."""
        if not self._counts_documents():
            return None
        labels, document = batch["labels"], batch["document"]
        if document is None:  # -100 is what such a model leaves out
            document = documents_by_content(labels[..., 1:])
        elif document.shape == labels.shape:
            document = _last(document, losses.shape[-1])
        found: Tensor = document[:rows].to(losses.device)
        return found

    def _documents_by_position(self, batch: Mapping[str, Any], logits: Logits, rows: int) -> Tensor | None:
        """The ids that the batch gives to sequences ``[B]`` or tokens ``[B, T]``; None if it gives none."""
        document: Tensor | None = batch["document"]
        if document is None or document.shape != batch["labels"].shape or document.ndim < 2:
            return document if document is None else document[:rows]
        shift = self._shifts_labels() and batch.get("shift_labels") is None
        return _by_position(document, logits, 0, shift)[:rows]

    def _virtual_tokens(self) -> int:
        """How many positions a trained prompt of peft adds before those of the batch."""
        model = self.accelerator.unwrap_model(self.model)
        return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0

    def _shifts_labels(self) -> bool:
        if self._percentile_ce_shift is not None:
            return self._percentile_ce_shift
        return not getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)

    def _check_shift(self, batch: Mapping[str, Any], logits: Logits, mean: Tensor, loss: Any) -> None:
        """Warn if a shift that nobody asked for gives losses far above those without it."""
        if self._percentile_ce_shift is not None or not self._shifts_labels() or "shift_labels" in batch:
            return
        if self._is_causal(batch):
            return
        rows = len(logits if isinstance(logits, Tensor) else logits[0])
        labels = self._labels_by_position(batch, logits, shift=False)[:rows]
        in_place = float(score_tokens(logits, labels, ignore_index=self._percentile_ce_ignored).mean())
        ours, own = float(mean), float(torch.as_tensor(loss).detach().float().mean())
        # A model that is asked for the next token and knows little gives away the one it was given. Its loss
        # tells, unless it is scaled.
        as_the_trainer = max(ours / 1.5, (ours * in_place) ** 0.5) < own < ours * 1.5
        if ours > in_place + 1 and ours > 1.5 * in_place and not as_the_trainer:
            self._warn_of_percentile_ce(
                f"of a first batch is {ours:.3g} in the mean, far above the {in_place:.3g} without a shift. "
                "Labels are shifted by one, as causal language models want it; if each label belongs to the "
                "logits where it stands, as in masked language models, call "
                "configure_percentile_ce(shift=False). If they are rightly shifted, shift=True says so."
            )

    def _is_causal(self, batch: Mapping[str, Any]) -> bool:
        """Whether transformers knows the model for a causal one, and the labels are its inputs."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if type(base).__name__ not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            return False
        ids, labels = batch.get("input_ids"), batch["labels"]
        if ids is None or ids.shape != labels.shape:
            return False
        return bool(((ids == labels) | (labels == self._percentile_ce_ignored)).all())

    def _new_rows(self, loader: Any, rows: int) -> int:
        """How many of this process's rows, the first ones, are no repeats.

        In the last step accelerate fills up with samples from the beginning: of the rows of all processes,
        one after the other, the first ``remainder`` are new. (``even_batches=False`` is no way out: with a
        batch more on some processes the Trainer's own gathering of the loss waits for ever.)
        """
        if self.accelerator.num_processes == 1 or not getattr(loader, "end_of_dataloader", False):
            return rows
        from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, IterableDatasetShard

        sampler, dataset, new = loader.batch_sampler, loader.dataset, loader.remainder
        if isinstance(loader, DataLoaderDispatcher):
            return _between(0, new - self.accelerator.process_index * rows, rows)
        if isinstance(sampler, BatchSamplerShard):
            filled_up = sampler.even_batches and not sampler.drop_last
            if not filled_up or new == 0:
                return rows
            if new > 0 and rows * sampler.num_processes == loader.total_batch_size:
                return _between(0, new - sampler.process_index * rows, rows)
            self._warn_of_percentile_ce(
                "counts the samples twice that accelerate repeats in the last batch to give all processes as "
                "many: rows are not samples here. It does not with per_device_eval_batch_size=1."
            )
        elif isinstance(dataset, IterableDatasetShard) and not dataset.drop_last:
            most = dataset.batch_size * dataset.num_processes - 1
            self._warn_of_percentile_ce(
                f"may count up to {most} samples twice that accelerate repeats in the last batch to give all "
                "processes as many. It does not with accelerator_config={'dispatch_batches': True}."
            )
        return rows

    def _warn_of_percentile_ce(self, message: str) -> None:
        """Once, not in every evaluation."""
        if not hasattr(self, "_percentile_ce_said"):
            self._percentile_ce_said: set[str] = set()
        warn_once(self._percentile_ce_said, message, f"Percentile CE {message}")


def _last(ids: Tensor, length: int) -> Tensor:
    """The last columns of ids ``[B, T]``; what is missing in front belongs to no text."""
    return torch.nn.functional.pad(ids, (max(length - ids.shape[-1], 0), 0))[..., -length:]


def _by_position(values: Tensor, logits: Logits, fill: int, shift: bool) -> Tensor:
    """What belongs to labels ``[B, T]`` as it belongs to positions of the logits, on their device."""
    virtual = length_of(logits) - values.shape[-1] if values.ndim > 1 else 0
    values = torch.nn.functional.pad(values, (virtual, 0), value=fill)  # as peft does
    first = logits if isinstance(logits, Tensor) else logits[0]
    return (shifted(values, fill) if shift else values).to(first.device)


def _between(low: int, number: int, high: int) -> int:
    return min(max(number, low), high)
