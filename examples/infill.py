"""Writing around what is given: gaps in a text, token ids at chosen positions, a draft to start from."""

from mlx_dgemma import CanvasPlan, Engine, Request

engine = Engine.load()
# a template: twelve tokens, the given words, nine tokens
print(engine.generate(Request("spell 1842", canvas="{12} eight hundred {9}")).text)
# the same in token ids: None where the model writes
word = engine.tokenizer.encode(" eight hundred ", add_special_tokens=False)
print(engine.generate(Request("spell 1842", canvas=[None] * 12 + word)).text)
# a wrong draft, half of it noise: the model corrects it
plan = CanvasPlan(draft="one thousand nine hundred forty-two", noise=0.5)
print(engine.generate(Request("spell 1842", canvas=plan)).text)
