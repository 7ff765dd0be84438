"""The main job as a chain of artifacts: a step makes what is missing before it, and nothing twice."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from echoray import artifacts
from echoray.config import RunConfig
from echoray.platform.failures import stop_where_asked
from echoray.storage import Store
from echoray.types import ArtifactRef, ModelVersion, Progress

if TYPE_CHECKING:
    from echoray.data.instruct.rounds import Reviewed, Rounds

StageName = Literal["align", "finetune"]
# How the evaluated models are called in tables, in the order of training.
MODEL_LABELS = {"base": "base", "align": "stage 1", "finetune": "stage 2"}


class Pipeline:
    """The steps of one run; every property is an artifact that is reused where it is finished."""

    def __init__(self, run: RunConfig, store: Store, progress: Progress) -> None:
        self.run = run
        self.store = store
        self._progress = progress

    @property
    def progress(self) -> Progress:
        """Reports progress; no step begins or goes on after an interrupt that was swallowed."""
        stop_where_asked()
        return self._report

    def _report(self, step: str, done: int, total: int | None) -> None:
        stop_where_asked()
        self._progress(step, done, total)

    @cached_property
    def corpus(self) -> ArtifactRef | None:
        """Raw embedded studies (synthetic corpus, package samples); None when neither is configured."""
        from echoray.data.corpus import make_corpus

        source = self.run.data.source
        if source.phantom is None and not source.package_samples:
            return None
        return make_corpus(self.run, self.progress)

    @cached_property
    def studies(self) -> ArtifactRef:
        """De-identified, filtered, split studies."""
        from echoray.data.studies import prepare_studies

        return prepare_studies(self.run, self.corpus, self.progress)

    @property
    def rounds(self) -> Rounds:
        """The rounds of generating instruction data, with the experts' decisions of now."""
        from echoray.data.instruct.rounds import Rounds

        return Rounds(self.run, self.store, self.studies, self.progress)

    @cached_property
    def reviewed(self) -> list[Reviewed]:
        """All rounds, made as far as they are missing, with the decisions of now."""
        return list(self.rounds)

    @cached_property
    def conversations(self) -> ArtifactRef:
        """Generated conversations, as quality control and experts left them."""
        from echoray.data.instruct.kept import keep

        return keep(self.run, self.store, self.studies, self.reviewed, self.progress)

    @cached_property
    def shards(self) -> ArtifactRef:
        """Tokenized Parquet shards."""
        from echoray.data.shards import tokenize

        generated = self.conversations if self.run.instruct.enabled else None
        return tokenize(self.run, self.studies, self.base, self.progress, generated)

    @cached_property
    def base(self) -> Path:
        """The directory of the Qwen2-VL that is upcycled."""
        from echoray.model.base import resolve_base

        return resolve_base(self.run.model.base)

    @cached_property
    def align(self) -> ArtifactRef:
        """Stage 1 checkpoint: only the experts, the router and the mixing coefficients trained."""
        from echoray.train import train_stage

        return train_stage(self.run, "align", shards=self.shards, parent=None, progress=self.progress)

    @cached_property
    def finetune(self) -> ArtifactRef:
        """Stage 2 checkpoint: experts and LoRA on the base."""
        from echoray.train import train_stage

        return train_stage(
            self.run, "finetune", shards=self.shards, parent=self.align, progress=self.progress
        )

    def model(self, stage: StageName = "finetune") -> ArtifactRef:
        """The merged, transformers- and vLLM-loadable directory of a stage."""
        from echoray.train import export_checkpoint

        checkpoint = self.align if stage == "align" else self.finetune
        return export_checkpoint(self.run, checkpoint)

    @cached_property
    def evaluation(self) -> ArtifactRef:
        """Held-out figures of base, stage 1 and stage 2."""
        from echoray.evaluate import evaluate

        models: dict[str, Path | ArtifactRef] = {
            MODEL_LABELS["base"]: self.base,
            MODEL_LABELS["align"]: self.model("align"),
            MODEL_LABELS["finetune"]: self.model("finetune"),
        }
        return evaluate(self.run, shards=self.shards, models=models, progress=self.progress)

    @cached_property
    def version(self) -> ModelVersion:
        """The stage 2 model in the registry."""
        from echoray.registry import register

        return register(self.run, self.model("finetune"), self.evaluation)

    def model_folder(self, stage: StageName = "finetune") -> Path:
        """A stage's exported model as a local folder."""
        return artifacts.fetch(self.store, self.model(stage))
