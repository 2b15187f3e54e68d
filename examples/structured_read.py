"""Reading fields instead of writing a text: one forward pass gives the probability of each label in each slot."""

from mlx_dgemma import Engine, Request

FIELDS = {"hundreds": ["three", "seven", "eight"], "ones": ["one", "two", "six"]}

slots = Engine.load().choose_each(Request("spell 1842"), "one thousand {?} hundred forty-{?}", list(FIELDS.values()))
for field, probabilities in zip(FIELDS, slots, strict=True):
    label = max(probabilities, key=probabilities.get)
    print(f"{field}: {label} ({', '.join(f'{name} {p:.1%}' for name, p in probabilities.items())})")
