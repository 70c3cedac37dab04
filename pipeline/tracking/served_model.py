"""Served model as MLflow sees it: its signature, and the error of a request that it refuses."""

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def signature(item: str, defaults: Mapping[str, Any]) -> "ModelSignature":
    """Signature of a bundle with item ids of type `item`, "long" or "string"; defaults: of parameters, by name.

    The columns are of any type, so that MLflow passes nulls, and items beside events, as they are.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    anything = AnyType()  # type: ignore[no-untyped-call]
    ids, texts = Array(DataType[item]), Array(DataType.string)
    windows = [Property("item_id", ids, required=False)]
    windows += [Property(name, texts, required=False) for name in ("available_from", "available_until")]
    return ModelSignature(
        inputs=Schema([ColSpec(anything, name, required=False) for name in ("user_id", "history")]),
        outputs=Schema([ColSpec(ids, "item_id"), ColSpec(Array(DataType.double), "score")]),
        params=ParamSchema(
            [
                ParamSpec("k", DataType.long, 10),
                ParamSpec("exclude_seen", DataType.boolean, defaults.get("exclude_seen", True)),
                *(
                    ParamSpec(name, DataType[item], defaults.get(name, []), shape=(-1,))
                    for name in ("allow", "deny", "pin")
                ),
                ParamSpec("availability", Object(windows), defaults.get("availability", {})),
                ParamSpec("max_per_category", DataType.long, defaults.get("max_per_category", 0)),
            ]
        ),
    )


def refusal(line: str) -> ValueError:
    """Error of a request that cannot be answered: over HTTP the status 400 and one line of JSON."""
    return _refusal()(line)


@cache
def _refusal() -> type[ValueError]:
    """Class of refusals, defined when MLflow is there."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    class RefusedRequest(MlflowException, ValueError):
        """Refused request."""

        def __init__(self, line: str) -> None:
            super().__init__(line, INVALID_PARAMETER_VALUE)
            self._line = line

        def serialize_as_json(self) -> str:
            """Body of the response; MLflow has put the whole request into `message` by then."""
            return json.dumps({"error_code": self.error_code, "message": self._line})

    return RefusedRequest
