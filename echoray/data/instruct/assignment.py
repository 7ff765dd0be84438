"""One round of generation: which studies are asked about, for what, and who answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from echoray import artifacts
from echoray.config.instruct import InstructConfig, Member, deciding
from echoray.data.clean import rows_of_part
from echoray.data.instruct.feedback import is_suspended
from echoray.data.instruct.item_files import items_of_part
from echoray.data.instruct.items import Form, Part
from echoray.data.instruct.requests import (
    TEXT_COLUMNS,
    Asked,
    Request,
    Round,
    asked,
    asking_digest,
    requests_of,
)
from echoray.data.instruct.review import SetKey
from echoray.data.instruct.rules import REVISION as RULES_REVISION
from echoray.data.instruct.templates import templates_digest
from echoray.data.parts import number_of, part_name, part_works
from echoray.storage import Store
from echoray.types import ArtifactRef

KIND = "candidates"
REVISION = 1  # see corpus.REVISION

Wanted = frozenset[tuple[str, Form, Part]]  # (study hash, form, part)


@dataclass(frozen=True)
class Assignment:
    """What ``generate`` works on.

    ``before`` holds the items of the round before (kind "screened"): from the second round on, those of the
    suspended sets are made again, and nothing else.
    """

    config: InstructConfig
    store: Store
    studies: ArtifactRef
    seed: int
    turn: Round
    before: ArtifactRef | None = None

    @property
    def plan(self) -> dict[str, Any]:
        """Everything that decides the items, beside the parents."""
        return {
            "members": [deciding(one) for one in self.config.generators],
            "items_per_request": self.config.items_per_request,
            "texts": [templates_digest(), asking_digest()],
            "rules": RULES_REVISION,
            "round": asdict(self.turn),
            "seed": self.seed,
            "revision": REVISION,
        }

    @property
    def parents(self) -> list[ArtifactRef]:
        """What the items are made from."""
        return [self.studies, self.before] if self.before is not None else [self.studies]

    @property
    def ref(self) -> ArtifactRef:
        """The artifact of the items."""
        return artifacts.plan(KIND, self.studies.name, config=self.plan, parents=self.parents)

    @property
    def works(self) -> list[dict[str, Any]]:
        """The parts of the studies: {number, path}."""
        return part_works(self.store, self.studies)

    def rows(self, path: str, *, pictures: bool) -> Iterator[tuple[dict[str, Any], list[Request]]]:
        """Each study of a part with the requests about it; with their images where ``pictures``."""
        wanted = self._wanted(number_of(path))
        columns = (*TEXT_COLUMNS, *(("images",) if pictures else ()))
        for row in rows_of_part(self.store, path, columns):
            found = requests_of(row, self.config, self.seed, self.turn)
            yield row, [one for one in (_narrowed(one, wanted) for one in found) if one.parts]

    def asked(self, request: Request, row: Mapping[str, Any]) -> Asked:
        """A request about the study of ``row``, as it is sent."""
        return asked(request, row, self.config.items_per_request)

    def asked_of(self, member: Member, path: str) -> Iterator[Asked]:
        """What one member is asked about the studies of a part, in their order."""
        for row, requests in self.rows(path, pictures=member.max_images > 0):
            for request in requests:
                if request.member == member:
                    yield self.asked(request, row)

    @property
    def sees_pictures(self) -> bool:
        """Whether any member is sent pictures."""
        return any(one.max_images for one in self.config.generators)

    def _wanted(self, number: int) -> Wanted | None:
        """What is made again of a part; None in the first round: everything."""
        if self.before is None:
            return None
        sets = {SetKey(*one) for one in self.turn.suspended}
        items = items_of_part(self.store, f"{self.before.path}/{part_name(number)}")
        return frozenset((one.study_hash, one.form, one.part) for one in items if is_suspended(one, sets))


def _narrowed(request: Request, wanted: Wanted | None) -> Request:
    if wanted is None:
        return request
    study = request.study.study_hash
    return request.asking_for([one for one in request.parts if (study, request.form, one) in wanted])
