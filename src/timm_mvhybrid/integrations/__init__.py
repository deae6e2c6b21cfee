"""The backbones inside pipelines that people already run: one module a pipeline, none of which is imported here."""
