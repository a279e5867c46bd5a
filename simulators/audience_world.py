"""A world whose contexts also tell which audience each shopper belongs to, as the shop's logs would.

Copy is written for audiences: what a shop has observed of a shopper (visits, days away, purchases, liked categories),
in the few words of `hawker.shop.audiences`. Here it is observed page by page, in learned and in gold worlds alike.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hawker.shop.audiences import AWAY, LEAST_CLICKS, STAGES, Audiences
from hawker.shop.context import ContextBuilder
from hawker.shop.decision import Decision, Outcome
from hawker.shop.features import FeatureSchema
from hawker.simulators.world import Shoppers, World

AUDIENCE = "history.audience"
"""What the schema calls the last entry of ``context.shopper``."""

OWN = "audience."
"""What begins the names of the audiences' part of the shoppers' state."""

NEW, RETURNING, BUYER, BACK = range(len(STAGES))


class AudienceWorld:
    """A world that tells audiences; see `hawker.simulators.world.World`.

    The last column of ``context.shopper`` is the number of the shopper's label in ``audiences.labels``, as float32:
    that of `hawker.shop.audiences.Audiences.number` for what was observed before the page. Days away are those that the
    world tells when a visit ends. All else is the world's own, and what decides by its contexts takes the column off
    first.

    Attributes:
        world: What answers; its contexts lack the column.
        audiences: How the shop tells its shoppers apart.
        builder: The world's, with one more entry of the shopper's features. It stands among the categories, since they
            come last, though it holds a number.
    """

    def __init__(self, world: World, audiences: Audiences) -> None:
        """Put audiences in front of a world; categories that its catalog does not know are liked by nobody."""
        self.world, self.audiences, self.size, self.device = world, audiences, world.size, world.device
        self.choices, self.offers, self.lines, self.bids = world.choices, world.offers, world.lines, world.bids
        schema = world.builder.shopper
        categories = schema.categories | {AUDIENCE: ("number",)}
        schema = FeatureSchema(schema.numeric, schema.mean, schema.scale, categories)
        self.builder = ContextBuilder(schema, world.builder.catalog)
        # What each item adds clicks to: column 0 is nobody's; an empty slot, -1, is the last item.
        liked = torch.from_numpy(audiences.liked_of(world.builder.catalog)) + 1
        self._column = torch.nn.functional.pad(liked, (0, 1)).to(world.device)

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers, whose first visit this is."""
        here = self.world.arrive(n, generator)
        zero = torch.zeros(n, dtype=torch.int32, device=self.device)
        none = zero[:, None].expand(n, len(self.audiences.liked))
        own = {"visits": zero, "away": zero.float(), "purchases": zero.clone(), "pages": zero.clone()}
        return self._told(here, own | {"clicks": none.clone(), "latest": none - 1})

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper, and observe what came of it."""
        own = {name.removeprefix(OWN): value for name, value in shoppers.state.items() if name.startswith(OWN)}
        inner = {name: value for name, value in shoppers.state.items() if not name.startswith(OWN)}
        context = replace(shoppers.context, shopper=shoppers.context.shopper[:, :-1])
        after, outcome = self.world.respond(replace(shoppers, context=context, state=inner), decision, generator)
        leave = torch.zeros_like(outcome.gone) if outcome.leave is None else outcome.leave
        days = own["away"] if outcome.days is None else outcome.days.to(torch.float32)
        bought = 0 if outcome.converted is None else outcome.converted.sum(1).int()
        column = self._column[decision.slate]
        hits = torch.zeros(len(leave), 1 + len(self.audiences.liked), dtype=torch.int32, device=self.device)
        hits = hits.scatter_add(1, column, outcome.clicked.int())[:, 1:]
        kept = {
            "visits": own["visits"] + leave,
            "away": torch.where(leave, days, own["away"]),
            "purchases": own["purchases"] + bought,
            "pages": own["pages"] + 1,
            "clicks": own["clicks"] + hits,
            "latest": torch.where(hits > 0, own["pages"][:, None], own["latest"]),
        }
        return self._told(after, kept), outcome

    def _told(self, here: Shoppers, own: dict[str, Tensor]) -> Shoppers:
        """Return the world's shoppers with contexts that tell their audience."""
        number = self._number(own).to(here.context.shopper.dtype)
        shopper = torch.cat([here.context.shopper, number[:, None]], 1)
        state = here.state | {OWN + name: value for name, value in own.items()}
        return replace(here, context=replace(here.context, shopper=shopper), state=state)

    def _number(self, own: dict[str, Tensor]) -> Tensor:
        """Return what `hawker.shop.audiences.Audiences.number` does, shape (N,)."""
        stage = torch.where(own["purchases"] > 0, BUYER, RETURNING)
        stage = stage.masked_fill(own["away"] > AWAY, BACK).masked_fill(own["visits"] == 0, NEW)
        if not self.audiences.liked:
            return stage
        most = own["clicks"].amax(1, keepdim=True)
        latest = own["latest"].masked_fill(own["clicks"] != most, -2).argmax(1)  # of equals the first
        liking = (latest + 1) * (most.squeeze(1) >= LEAST_CLICKS)
        return stage * (1 + len(self.audiences.liked)) + liking
