"""Vectors of neighbouring channels in the kernels of numba, which has none itself.

Numbers in bfloat16 are widened as they are read and rounded to the nearest (even) as they are
written, in plain integer operations that any processor has.
"""

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped]

from medseg.ops.kernels.compiled import Untyped

__all__ = ["FEW", "MANY", "Vectors"]

# channels at a time; the widest vector is several registers, whose sums do not wait for each other
MANY, FEW = 32, 8


class Vectors:
    """``lanes`` neighbouring channels as vectors of float32, whatever their type in memory.

    Args:
        builder: Of the function that is being written.
        half: Whether :meth:`read` and :meth:`write` find bfloat16 in memory, not float32.
        lanes: Numbers in a vector.
    """

    def __init__(self, builder: Untyped, *, half: bool, lanes: int) -> None:
        self._builder = builder
        self._half = half
        self._lanes = lanes
        self.single = ir.VectorType(ir.FloatType(), lanes)
        self._whole = ir.VectorType(ir.IntType(32), lanes)
        self._short = ir.VectorType(ir.IntType(16), lanes)

    def constant(self, number: float) -> Untyped:
        """A vector of one number known beforehand."""
        return ir.Constant(self.single, [number] * self._lanes)

    def spread(self, number: Untyped) -> Untyped:
        """The same number in every lane."""
        nothing = ir.Constant(self.single, ir.Undefined)
        first = ir.Constant(ir.IntType(32), 0)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self._lanes), [0] * self._lanes)
        single = self._builder.insert_element(nothing, number, first)
        return self._builder.shuffle_vector(single, single, zeros)

    def read_single(self, address: Untyped) -> Untyped:
        """float32 from memory."""
        pointer = self._builder.inttoptr(address, self.single.as_pointer())
        return self._builder.load(pointer, align=4)

    def write_single(self, vector: Untyped, address: Untyped) -> None:
        """float32 to memory."""
        pointer = self._builder.inttoptr(address, self.single.as_pointer())
        self._builder.store(vector, pointer, align=4)

    def read(self, address: Untyped) -> Untyped:
        """The tensor's numbers from memory."""
        if not self._half:
            return self.read_single(address)
        builder = self._builder
        bits = builder.load(builder.inttoptr(address, self._short.as_pointer()), align=2)
        high = builder.shl(builder.zext(bits, self._whole), self._bits(16))
        return builder.bitcast(high, self.single)

    def write(self, vector: Untyped, address: Untyped) -> None:
        """The tensor's numbers to memory."""
        if not self._half:
            self.write_single(vector, address)
            return
        builder = self._builder
        bits = builder.bitcast(vector, self._whole)
        odd = builder.and_(builder.lshr(bits, self._bits(16)), self._bits(1))
        rounded = builder.add(bits, builder.add(odd, self._bits(0x7FFF)))
        # a number that is none must not be rounded into infinity or zero
        kept = builder.or_(bits, self._bits(0x400000))
        lost = builder.fcmp_unordered("uno", vector, vector)
        chosen = builder.lshr(builder.select(lost, kept, rounded), self._bits(16))
        pointer = builder.inttoptr(address, self._short.as_pointer())
        builder.store(builder.trunc(chosen, self._short), pointer, align=2)

    def _bits(self, number: int) -> Untyped:
        return ir.Constant(self._whole, [number] * self._lanes)
