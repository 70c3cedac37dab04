"""Array shapes in signatures: jaxtyping where it is installed, plain array types on a bare machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Shaped:
            """`Float[Tensor, "b l d"]` is then just `Tensor`."""

            def __class_getitem__(cls, shaped: tuple[Any, str]) -> Any:
                return shaped[0]

        Bool = Float = Int = _Shaped

__all__ = ["Bool", "Float", "Int"]
