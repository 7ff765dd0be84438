"""EchoRay: from a hospital's ultrasound archive to a trained EchoVLM and a reporting endpoint.

Research software, not a medical device: generated reports are drafts for a clinician.
"""

__version__ = "0.1.0"

from echoray.auto_classes import announce as _announce

_announce()
