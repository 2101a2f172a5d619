"""A whole model with data: survey, one budget, block by block, then what lies outside blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from torch import nn

from bondwise.choose import cost
from bondwise.choose.budget import allocate, counted, mixed
from bondwise.choose.candidates import Candidate, Site
from bondwise.choose.scout import scout
from bondwise.choose.survey import Judge, Survey, look, rest_sites, survey
from bondwise.choose.table import Row, decided
from bondwise.compress.blockwise import EFFORT, Effort, Fitted, fit_chain, fit_layers
from bondwise.compress.continuations import continuations
from bondwise.compress.refine import Refined
from bondwise.errors import BudgetError
from bondwise.flow.blocks import Stream, capture, chains, holds
from bondwise.flow.data import Batch, evaluating, fitted_on, is_vectors, part, samples
from bondwise.progress import Progress, Steps, silent
from bondwise.topology import registry

HELD_OUT = 8  # one batch in so many is measured on and never fitted on
FLOOR = 0.4  # of the keep: what every weight gets, since its sensitivity holds for small errors
JUDGED = 2  # samples of a batch that a whole model's output is compared on

Copy = Callable[[nn.Module, Mapping[str, nn.Module]], nn.Module]


@dataclass
class Outcome:
    """New modules by path, the rows of the weights, and the error of every refined block."""

    modules: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    blocks: dict[str, Refined] = field(default_factory=dict[str, Refined])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, eq=False)
class Settings:
    """What was asked: see `bondwise.tensorize`."""

    keep: float
    format: str
    effort: str
    prefer: str
    unit: str
    seed: int
    bits: Mapping[str, int]
    protect: frozenset[str] = frozenset()

    @property
    def work(self) -> Effort:
        """How much each block is worth."""
        return EFFORT[self.effort]


def compress_whole(
    model: nn.Module,
    rows: Mapping[str, Row],
    batches: Sequence[Batch],
    asked: Settings,
    copy: Copy,
    steps: Steps,
    progress: Progress,
) -> Outcome:
    """Everything that changes, computed beside the model, which stays as it was.

    Args:
        model: the dense model.
        rows: the weights that may change, with their networks where a format was asked for.
        batches: what the model is shown.
        asked: the settings.
        copy: makes a model with other modules at some paths, sharing all else.
        steps: where the time goes.
        progress: called with (stage, done, total).
    """
    shown, held = _held_out(batches)
    with evaluating(model):
        with steps("draw"):
            given = [shown[k] for k in fitted_on(len(shown), held)]
            drawn = continuations(model, given, asked.work.drawn, asked.seed, progress)
        with steps("calibrate"):
            flowing = _entering(model, rows, [*shown, *drawn], progress)
            entering = [(b, n, stream.part(range(len(shown)))) for b, n, stream in flowing]
        inside = {w for _, names, _ in entering for w in names}
        rest = [name for name in rows if name not in inside]
        judge = None
        with steps("survey"):
            layers = {name: model.get_submodule(name) for name in rest}
            outside = rest_sites(model, layers, shown, held, progress)
            if asked.format == "auto":
                judge = Judge.of(model, shown[held[0] if held else 0])
                found = _survey(model, outside, entering, held, judge, asked, progress)
                allocations, notes = _preferred(found, asked)
            else:
                found, allocations, notes = None, [_asked(rows, asked)], []
        with steps("fit"):
            picks = allocations[0]
            if judge is not None and len(allocations) > 1 and entering:
                picks = _best(model, allocations, entering, shown, held, judge, asked, copy)
            every = [*shown, *drawn]
            fitted = _fit(model, picks, flowing, every, len(shown), held, asked, copy, progress)
            left = {name: picks[name] for name in rest if picks[name].networks}
            fitted.append(fit_layers(model, left, outside, asked.seed))
    done = _outcome(rows, picks, found, fitted)
    done.notes += notes
    if found is not None and asked.unit != "params":
        done.notes.append(_spent(found, picks, asked))
    if not held:
        done.notes.append("one sample came: errors are those of the tokens that were fitted on")
    return done


Chain = tuple[tuple[str, ...], list[str], Stream]


def _held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[int]]:
    """The batches, those held out cut small, and which they are; none where a sample is all."""
    shown, count = list(batches), len(batches) // HELD_OUT or int(len(batches) > 2)
    if not count and samples(batches[-1]) > 1:
        *shown, last = batches
        size = samples(last)
        cut = size - max(1, size // HELD_OUT)
        shown += [part(last, 0, cut), part(last, cut, size)]
        count = 1
    start = len(shown) - count
    small = [piece for batch in shown[start:] for piece in _small(batch)]
    return [*shown[:start], *small], list(range(start, start + len(small)))


def _small(batch: Batch) -> list[Batch]:
    """A batch in parts whose outputs are small enough to be kept: logits are wide."""
    size = samples(batch)
    if is_vectors(batch) or size <= JUDGED:
        return [batch]
    return [part(batch, k, min(k + JUDGED, size)) for k in range(0, size, JUDGED)]


def _entering(
    model: nn.Module, rows: Mapping[str, Row], batches: Sequence[Batch], progress: Progress
) -> list[Chain]:
    """Every chain of blocks, the weights in it, and what enters its first block."""
    plain = [n for n, row in rows.items() if row.weight.kind != "Embedding"]
    plain = [n for n in plain if not rows[n].weight.aliases]
    found: list[Chain] = []
    for blocks in chains(model, plain):
        names = [n for n in plain if any(holds(block, n) for block in blocks)]
        stream = None if _tied(model, blocks) else capture(model, blocks, batches, progress)
        if stream is not None:
            found.append((blocks, names, stream))
    return found


def _tied(model: nn.Module, blocks: Sequence[str]) -> bool:
    """Whether a parameter of a block is used elsewhere too, so that blocks cannot be copied."""
    paths: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(path)
    return any(
        len(places) > 1 and any(holds(block, p) for p in places for block in blocks)
        for places in paths.values()
    )


def _survey(
    model: nn.Module,
    outside: Sequence[Site],
    entering: Sequence[Chain],
    held: Sequence[int],
    judge: Judge | None,
    asked: Settings,
    progress: Progress,
) -> Survey:
    bits = next(iter(asked.bits.values()), 32)
    found = Survey([], {})
    for blocks, names, stream in entering:
        scouted = scout(
            model, blocks, names, stream, held,
            keep=asked.keep, bits=bits, prefer=asked.prefer, formats=registry.scouted(asked.effort),
        )  # fmt: skip
        found = found.with_rest(
            survey(
                model, blocks, names, stream, held, judge,
                bits=bits, every=asked.work.every, formats=asked.work.exact,
                scouted=scouted, progress=progress,
            )
        )  # fmt: skip
    return found.with_rest(look(model, outside, judge, bits, asked.work.exact))


def _preferred(found: Survey, asked: Settings) -> tuple[list[dict[str, Candidate]], list[str]]:
    """Allocations with what is preferred; where speed cannot be had at this keep, without it."""
    try:
        return _allocations(found, asked), []
    except BudgetError:
        if asked.prefer != "speed":
            raise
    note = f"keep={asked.keep:g} cannot be had without weights that are modelled slower than dense"
    return _allocations(found, replace(asked, prefer="size")), [note]


def _allocations(found: Survey, asked: Settings) -> list[dict[str, Candidate]]:
    """A few allocations, by the power of the sensitivities; equal ones once."""
    different: list[dict[str, Candidate]] = []
    for alpha in asked.work.alphas:
        sensitivity = mixed(_known(found), alpha)
        floor = FLOOR * _left(found, asked)
        chosen = allocate(
            found.sites,
            asked.keep,
            sensitivity,
            unit=asked.unit,
            floor=floor,
            protect=asked.protect,
            prefer=asked.prefer,
        )
        if chosen not in different:
            different.append(chosen)
    return different


def _left(found: Survey, asked: Settings) -> float:
    """The fraction that weights which are not protected may keep, in numbers; 0 for none."""
    whole = [(c.weights[0], c.numbers) for site in found.sites for c in site if not c.networks]
    total = sum(size for _, size in whole)
    free = sum(size for name, size in whole if name not in asked.protect)
    return max(0.0, asked.keep * total - (total - free)) / free if free else 0.0


def _spent(found: Survey, picks: Mapping[str, Candidate], asked: Settings) -> str:
    """What a budget in another unit than numbers came to."""
    price = counted(asked.unit, found.sites)
    dense = sum(price(c) for site in found.sites for c in site if not c.networks)
    kept = sum(map(price, set(picks.values()))) / dense
    return f"kept {kept:.4f} of {asked.keep:g} asked, counted in {asked.unit}"


def _known(found: Survey) -> dict[str, float]:
    """A sensitivity for every weight: the median of the others where it could not be measured."""
    names = {name for site in found.sites for c in site for name in c.weights}
    middle = median(found.sensitivity.values()) if found.sensitivity else 1.0
    return {name: found.sensitivity.get(name, middle) for name in sorted(names)}


def _asked(rows: Mapping[str, Row], asked: Settings) -> dict[str, Candidate]:
    """What plan_model chose, as candidates whose errors are not known yet."""
    found: dict[str, Candidate] = {}
    for name, row in rows.items():
        if row.network is not None:
            price = cost.network(row.network, asked.bits[name])
            form = row.format or asked.format
            found[name] = Candidate((name,), form, (row.network,), **asdict(price), errors=(1.0,))
    return found


def _fit(
    model: nn.Module,
    picks: Mapping[str, Candidate],
    entering: Sequence[Chain],
    shown: Sequence[Batch],
    given: int,
    held: Sequence[int],
    asked: Settings,
    copy: Copy,
    progress: Progress,
    refined: bool = True,
) -> list[Fitted]:
    done: list[Fitted] = []
    for blocks, names, stream in entering:
        new = _modules(done)
        start = capture(copy(model, new), blocks, shown, progress) if new else stream
        done.append(
            fit_chain(
                model,
                blocks,
                {name: picks[name] for name in names if name in picks},
                stream,
                stream if start is None else start,
                given,
                held,
                steps=asked.work.steps if refined else 0,
                rate=asked.work.rate,
                seed=asked.seed,
                progress=progress,
            )
        )
    return done


def _best(
    model: nn.Module,
    allocations: Sequence[dict[str, Candidate]],
    entering: Sequence[Chain],
    shown: Sequence[Batch],
    held: Sequence[int],
    judge: Judge,
    asked: Settings,
    copy: Copy,
) -> dict[str, Candidate]:
    """The allocation whose blocks, fitted but not refined, change a held-out output least."""

    def distance(picks: dict[str, Candidate]) -> float:
        done = _fit(
            model, picks, entering, shown, len(shown), held, asked, copy, silent, refined=False
        )
        new = _modules(done)
        return judge.distance(copy(model, new))

    return min(allocations, key=distance)


def _modules(fitted: Sequence[Fitted]) -> dict[str, nn.Module]:
    return {path: module for part in fitted for path, module in part.blocks.items()}


def _outcome(
    rows: Mapping[str, Row],
    picks: Mapping[str, Candidate],
    found: Survey | None,
    fitted: Sequence[Fitted],
) -> Outcome:
    sites = {} if found is None else {w: s for s in found.sites for c in s for w in c.weights}
    done = Outcome(modules=_modules(fitted))
    for fit in fitted:
        done.blocks |= fit.refined
        done.notes += [
            f"no token but zeros reached {name}: fitted to the weight alone" for name in fit.unseen
        ]
    errors = {n: e for fit in fitted for n, e in fit.errors.items()}
    for name, row in rows.items():
        if name in sites:
            row = decided(row.weight, picks[name], sites[name])
        if name in errors:
            row = replace(row, error=errors[name][0], held_out=errors[name][1])
        done.rows[name] = row
    return done
