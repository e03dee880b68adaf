"""What a request may hold, checked before anything is done with it; FastAPI makes the OpenAPI description of it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="32 hex digits")]
Value = Annotated[str, Field(max_length=500)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """An unknown field is an error, so that a typing mistake is not silently without effect."""

    model_config = ConfigDict(extra="forbid")


class Term(Strict):
    """One part of a query: a text, a pair, or an embedding; a weight below 0 looks for what is unlike it."""

    text: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    tower: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="which text tower reads the text; one of info.towers"
    )
    uid: Uid | None = None
    by: Literal["image", "caption"] = Field("image", description="of the pair: its image, or its caption")
    embedding: Annotated[list[Number], Field(max_length=8192)] | None = None
    weight: Annotated[Number, Field(ge=-10, le=10)] = 1.0

    @model_validator(mode="after")
    def _one_kind(self) -> "Term":
        if sum(each is not None for each in (self.text, self.uid, self.embedding)) != 1:
            raise ValueError("a term of the query has one of text, uid and embedding; give exactly one")
        if self.weight == 0:
            raise ValueError("a term's weight is 0; give a number above 0 (like it) or below 0 (unlike it)")
        return self


class Filter(Strict):
    """A condition on one column; a row passes when it holds."""

    column: Annotated[str, Field(max_length=200)] = Field(description="one of info.columns, or `text`")
    any_of: Annotated[list[Value | None], Field(max_length=200)] | None = Field(
        None, description="of a category; null stands for a missing value"
    )
    none_of: Annotated[list[Value | None], Field(max_length=200)] | None = None
    min: Number | None = Field(None, description="of a number; a missing value fails")
    max: Number | None = None
    contains: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="of `text`: these characters, in either case"
    )


class Selection(Strict):
    """Which rows."""

    filters: Annotated[list[Filter], Field(max_length=40)] = []


class SearchRequest(Selection):
    """A search. Without a query, the rows that pass the filters, in the order of their uids."""

    query: Annotated[list[Term], Field(max_length=20)] = []
    modality: Literal["image", "text"] = Field("image", description="what is compared with the query")
    min_similarity: Annotated[Number, Field(ge=-1, le=1)] | None = None
    max_similarity: Annotated[Number, Field(ge=-1, le=1)] | None = None
    fold: bool = Field(True, description="near-duplicates and equal addresses become one result")
    hide_violence: bool = False
    limit: Annotated[int, Field(ge=1, le=200)] = 40
    cursor: Annotated[int, Field(ge=0)] = Field(0, description="the `next` of the page before")


class ExportRequest(SearchRequest):
    """A search's results, or all rows that pass the filters, as a file."""

    format: Literal["parquet", "csv", "jsonl", "npy"]
    rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="at most; null: as many as the server gives"
    )
