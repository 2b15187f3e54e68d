"""/v1/systemone: answers with probabilities."""

import pytest

from mlx_dgemma.server.systemone import questions_of

PATH = "/v1/systemone"
ASK = {
    "state": "roman 1994",
    "questions": {
        "tone": {"type": "choice", "instructions": "What is it?", "criteria": {"formal": "stiff", "casual": None}},
        "grade": {"type": "score", "criteria": ["bad", "fair", "good"]},
        "spam": {"type": "noul", "instructions": "Is it spam?"},
    },
}


def test_every_kind_of_question(server):
    answer = server.post(PATH, ASK).json()
    tone, grade, spam = (answer["answers"][name] for name in ("tone", "grade", "spam"))
    assert sum(tone["probabilities"].values()) == pytest.approx(1) and set(tone["probabilities"]) == {
        "formal",
        "casual",
    }
    assert tone["choice"] == max(tone["probabilities"], key=tone["probabilities"].get) and 0 <= tone["confidence"] <= 1
    assert 0 <= grade["score"] <= 2 and grade["legend"] == {"0": "bad", "1": "fair", "2": "good"}
    assert 0 <= spam["noul"] <= 1 and answer["usage"]["output_tokens"] == 0 and answer["usage"]["input_tokens"] > 30
    assert server.post(PATH, ASK).json() == answer


def test_the_answers_of_sure_and_of_even_probabilities(server):
    tone, grade, spam = questions_of(server.service, ASK)
    assert tone.answer([0.9, 0.1])["confidence"] == pytest.approx(0.8) and tone.answer([0.5, 0.5])["confidence"] == 0
    assert grade.answer([0, 1, 0]) | {"legend": 0} == {
        "type": "score", "probabilities": {"0": 0, "1": 1, "2": 0}, "score": 1, "legend": 0, "confidence": 1,
    }  # fmt: skip
    assert spam.answer([0.3, 0.7]) == {"type": "noul", "noul": 0.3}
    assert tone.prompt.splitlines() == [
        "roman 1994",
        "",
        "What is it?",
        "A. formal: stiff",
        "B. casual",
        "Answer with one letter, A to B.",
    ]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 400, "state is missing"),
        ({"state": "a"}, 400, "questions are missing"),
        ({"state": "a", "questions": {}}, 400, "questions are missing"),
        ({"state": "a", "questions": {"q": {"type": "x"}}}, 400, "questions.q: the type is 'x'"),
        ({"state": "a", "questions": {"q": {"type": "choice", "criteria": {"a": None}}}}, 400, "2 to 26"),
        ({"state": "a", "questions": {"q": {"type": "score", "criteria": {"a": None}}}}, 400, "a list"),
        ({"state": "a", "questions": {"q": {"type": "noul", "more": 1}}}, 400, "more is unknown"),
        ({"state": "é", "questions": {"q": {"type": "noul"}}}, 400, "does not know"),
        ({"state": "a", "assets": {"i": {}}, "questions": {"q": {"type": "noul"}}}, 501, "assets"),
    ],
)
def test_bad_input(server, body, status, told):
    response = server.post(PATH, body)
    assert response.status_code == status and told in response.json()["error"]["message"]
