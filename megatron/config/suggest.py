"""Values that fit, for messages about values that do not."""


def nearest_divisors(number: int, value: int) -> str:
    """The three divisors of `number` that are nearest to `value`, in words."""
    choices = [n for n in range(1, number + 1) if number % n == 0]
    return ", ".join(map(str, sorted(sorted(choices, key=lambda n: abs(n - value))[:3])))


def equal_split(number: int, parts: int) -> str:
    """A --pipeline-split of `number` layers into parts that differ by one layer at most."""
    return ",".join(str(number // parts + (part < number % parts)) for part in range(parts))
