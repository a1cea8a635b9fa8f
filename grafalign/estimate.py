"""A measured share and how sure it is: what results, reports and model cards carry."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Estimate(BaseModel):
    """A share of one (accuracy, mIoU, average precision) with its 95 % interval."""

    model_config = ConfigDict(extra='forbid', frozen=True)

    value: Share
    low: Share
    high: Share
