"""The way out: model folders, their cards, and the Hub."""

from ltzoo.hub.card import model_card, planned_card
from ltzoo.hub.deploy import DeployError, deploy
from ltzoo.hub.export import ExportError, export_model
from ltzoo.hub.publish import Publication, PublishError, publish
from ltzoo.hub.release import release
from ltzoo.hub.vectors import VerificationError
from ltzoo.hub.verify import Verification, verify

__all__ = [
    'DeployError',
    'ExportError',
    'Publication',
    'PublishError',
    'Verification',
    'VerificationError',
    'deploy',
    'export_model',
    'model_card',
    'planned_card',
    'publish',
    'release',
    'verify',
]
