"""The way out: exported folders and their cards."""

from ltzoo.hub.card import model_card
from ltzoo.hub.export import ExportError, copy_export, export_model

__all__ = ['ExportError', 'copy_export', 'export_model', 'model_card']
