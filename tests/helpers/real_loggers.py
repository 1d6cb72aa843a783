"""One fit with a real logger that keeps everything in a folder.

``python -m tests.helpers.real_loggers wandb FOLDER``

A process of its own, because these packages start threads and servers and patch others. It leaves behind
``figures.json``: name -> (step, path) of each figure, as the package itself has stored them.
"""

import json
import os
import sys
import zipfile
from pathlib import Path

from lightning_pce.integrations.lightning.figures import PercentileFigures
from tests.helpers import lit_modules as lit


def wandb(folder):
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    os.environ["WANDB_SILENT"] = "true"
    logger = WandbLogger(offline=True, save_dir=folder)
    steps = {}

    class Reader(lit.L.Callback):
        def on_validation_end(self, trainer, module):
            for name, value in dict(wandb.run.summary).items():
                if name.endswith(("_fan", "_quantiles")):
                    path = folder / "wandb" / "latest-run" / "files" / value["filenames"][0]
                    steps.setdefault(name, []).append([trainer.global_step, str(path)])

    yield logger, [Reader()]
    assert wandb.run.summary["trainer/global_step"] == 6
    wandb.finish()
    yield steps


def mlflow(folder):
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # files since 3.7 only so; a database needs more packages
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(tracking_uri=f"file:{folder}/mlruns")
    yield logger, []
    client, steps = logger.experiment, {}
    for name in ("val_ce_fan", "val_ce_quantiles"):
        for artifact in client.list_artifacts(logger.run_id, name):
            path = client.download_artifacts(logger.run_id, artifact.path)
            steps.setdefault(name, []).append([int(Path(path).stem), path])
    yield steps


def comet_ml(folder):
    # CometLogger(online=False) asks for an experiment that is disabled and keeps nothing.
    os.environ["COMET_START_ONLINE"] = "false"
    from lightning.pytorch.loggers import CometLogger

    logger = CometLogger(offline_directory=str(folder), project="figures")
    yield logger, []
    logger.experiment.end()
    [archive] = folder.glob("*.zip")
    zipfile.ZipFile(archive).extractall(folder)
    steps = {}
    for line in (folder / "messages.json").read_text().splitlines():
        payload = json.loads(line)["payload"]
        parameters = payload.get("additional_params") or {}
        if "figName" in parameters:
            figure = [parameters["step"], str(folder / payload["file_path"])]
            steps.setdefault(parameters["figName"], []).append(figure)
    yield steps


def main():
    package, folder = sys.argv[1], Path(sys.argv[2])
    run = {"wandb": wandb, "mlflow": mlflow, "comet_ml": comet_ml}[package](folder)
    logger, callbacks = next(run)
    lit.fit(folder, lit.LitLM(), PercentileFigures(), *callbacks, logger=logger, max_epochs=3)
    (folder / "figures.json").write_text(json.dumps(next(run)))


if __name__ == "__main__":
    main()
