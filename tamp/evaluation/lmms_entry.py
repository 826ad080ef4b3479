"""What lmms-eval's registry loads of tamp: a file of its own, for lmms-eval reads it in the middle of its own import."""


def manifests() -> list:
    """Return the models that tamp adds to lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="tamp", simple_class_path="tamp.evaluation.lmms_bridge.TampModel")]
