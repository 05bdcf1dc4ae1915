"""What `rapport report` says of one task, in words for people who have never heard of AUC."""

from collections.abc import Iterator
from dataclasses import dataclass

from feature_client.contract import Contract, Task
from model_export.bootstrap import Interval
from model_export.explain_figures import digits
from model_export.report_facts import Facts, Metric, Rows, SliceFacts
from model_export.tasks import engagement_tasks

KINDS = {labelled.task.name: labelled.label for labelled in engagement_tasks("")}
SILENT = {name for name, kind in KINDS.items() if kind == "silent"}


@dataclass(frozen=True)
class Outcome:
    """question: a heading. came: what customers did, as in "71 bought within 30 days"; short: the same in a word or
    two. those: all who did. pair: one who did and one who did not."""

    question: str
    came: str
    short: str
    those: str
    pair: str

    @classmethod
    def of(cls, task: Task) -> "Outcome":
        days = f"{task.horizon_days} days"
        match KINDS.get(task.name):
            case "bought":
                pair = f"one who bought within {days} and one who did not"
                return cls("Who will buy?", f"bought within {days}", "bought", "of all who bought", pair)
            case "silent":
                pair = f"one who did not buy for {days} and one who did"
                return cls("Who will leave?", f"did not buy for {days}", "did not buy", "of all who left", pair)
            case "spent":
                return cls("What are they worth?", f"spent within {days}", "spent", "of all that was spent", "")
        pair = "one for whom it came true and one for whom it did not"
        return cls(f"{task.label}?", "turned out that way", "did", "of all for whom it came true", pair)


def money(value: float, unit: str) -> str:
    """`GBP 1.23 million`, `GBP 45,200`."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{unit} {digits(value / size)} {name}"
    return f"{unit} {float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{unit} {digits(value)}"


def percent(share: float) -> str:
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.5 or value == 0 else f"{value:.1f} %"


def metric(facts: Facts, name: str) -> Metric:
    return next(one for one in facts.metrics if one.name == name)


def sentences(contract: Contract, facts: Facts) -> list[str]:
    """The first of them is the one that is remembered. What stands between ** and ** is most important."""
    kind = facts.rows.task.kind
    return list(_of_probability(contract, facts) if kind == "probability" else _of_amount(contract, facts))


def _of_probability(contract: Contract, facts: Facts) -> Iterator[str]:
    outcome, rows, top = Outcome.of(facts.rows.task), facts.rows, facts.top
    size = top.size
    came, low, high, chance = (round(size * part) for part in (top.came.value, top.came.low, top.came.high, facts.base))
    yield (
        f"Of the {size} customers we rank highest, **{came} {outcome.came}**. "
        f"Of {size} picked at random it would be {chance}."
    )
    yield (
        f"The test is of {rows.people:,} customers on {_dates(rows)}. "
        f"With others it might have been {low} to {high} of {size}."
    )
    yield (f"Turn to the highest fifth of the list alone, and you have **{percent(facts.gains[20])}** {outcome.those}.")
    auc = metric(facts, "auc")
    naive = ""
    if facts.advantage is not None:
        surely = "" if facts.advantage.low > 0 else ", which we are not surely better than"
        naive = f", the best single fact ({_naive(contract, rows)}) in {100 * auc.naive:.0f}{surely}"
    yield (
        f"Take two customers, {outcome.pair}. The list has them in the right order in **{100 * auc.own.value:.0f} of "
        f"100** such pairs; a coin would in 50{naive}."
    )
    if is_at_stake(facts):
        spent = money(facts.tenths[0].risked, currency(contract))
        yield f"What is at stake: the tenth of highest risk spent **{spent}** in the year before."


def _of_amount(contract: Contract, facts: Facts) -> Iterator[str]:
    rows, unit = facts.rows, facts.rows.task.unit
    said, came = (float(values.sum()) / rows.dates for values in (rows.score, rows.label))
    ratio = metric(facts, "sum_ratio").own
    wrong = f"{percent(abs(ratio.value - 1))} too {'much' if ratio.value > 1 else 'little'}"
    yield (
        f"Of all customers together we expected **{money(said, unit)}** within {rows.task.horizon_days} days, and "
        f"**{money(came, unit)}** came: we said {wrong}."
    )
    yield (
        f"The test is of {rows.people:,} customers on {_dates(rows)}. With others we might have said "
        f"{percent(ratio.low)} to {percent(ratio.high)} of what came."
    )
    naive = (
        f" The tenth that is highest by the best single fact ({_naive(contract, rows)}) brought "
        f"{percent(facts.naive_gains[10])}."
        if facts.naive_gains is not None
        else ""
    )
    yield f"The tenth of customers of whom we expect most brought **{percent(facts.gains[10])}** of it.{naive}"
    yield (
        f"{percent(float((rows.label == 0).mean()))} of the customers brought nothing at all, and a few very much. "
        "What we say of one customer is the mean of such outcomes: good for adding up and for putting customers in "
        "order, and no promise for a single one."
    )


def calibrated(facts: Facts) -> str:
    """Whether what was said is what came."""
    highest, lowest = facts.tenths[0], facts.tenths[-1]
    if facts.rows.task.kind == "amount":
        unit = facts.rows.task.unit
        return (
            f"Of each customer of the highest tenth we expected {money(highest.said, unit)}, and "
            f"{money(highest.came.value, unit)} came on average; of the lowest {money(lowest.said, unit)}, and "
            f"{money(lowest.came.value, unit)} came."
        )
    error = metric(facts, "ece").own.value
    return (
        f"To all customers we gave {percent(float(facts.rows.score.mean()))} on average, and it came true for "
        f"{percent(facts.base)} of them. To the highest tenth we gave {percent(highest.said)}, and it came true for "
        f"{percent(highest.came.value)}; to the lowest {percent(lowest.said)}, and for {percent(lowest.came.value)}. "
        f"Over all groups, what we said and what came are **{100 * error:.1f} points** apart on average; up to "
        f"{100 * facts.noise:.1f} would be no wonder by chance alone."
    )


def is_at_stake(facts: Facts) -> bool:
    """Whether last year's spend of those who may leave is known."""
    return facts.rows.task.name in SILENT and facts.tenths[0].risked > 0


def is_worse(facts: Facts, found: Interval) -> bool:
    """Whether a kind of customers is surely worse: pairs in the wrong order, or a sum that is too high or too low."""
    if facts.rows.task.kind == "amount":
        return found.low > 1 or found.high < 1
    return found.high < metric(facts, "auc").own.value


def worse(facts: Facts) -> str:
    """For which kinds of customers it is."""
    poor = [(one, one.quality.value) for one in facts.slices if one.quality and is_worse(facts, one.quality)]
    if facts.rows.task.kind == "amount":
        if poor:
            named = "; ".join(f"{_named(one)} ({percent(value)} of what came)" for one, value in poor)
            return f"What we said is surely too much or too little for: {named}."
        return "For no kind of customers that the test can tell apart did we surely say too much or too little."
    if poor:
        pairs = f"{100 * metric(facts, 'auc').own.value:.0f} of 100 pairs"
        named = "; ".join(f"{_named(one)} ({100 * value:.0f})" for one, value in poor)
        return (
            f"The order is surely worse than on the whole ({pairs}) for: {named}. Customers of one kind are more "
            "alike, and harder to put in order, than all together."
        )
    return "For no kind of customers that the test can tell apart is the order surely worse than on the whole."


def quality(one: SliceFacts, factor: float) -> str:
    """Of a slice, with its interval."""
    if one.quality is None:
        return "too few rows"
    value, low, high = (factor * end for end in (one.quality.value, one.quality.low, one.quality.high))
    write = digits if factor > 1 else "{:.3f}".format
    return f"{write(value)} [{write(low)}, {write(high)}]"


def asked_of(contract: Contract, task: Task) -> str:
    """Which customers a score is for, where it is not for all."""
    if task.eligibility is None:
        return ""
    label = contract.schema.by_name[task.eligibility.feature].label.lower()
    return f"; asked only where {label} are at most {task.eligibility.at_most:g}"


def too_few(rows: Rows) -> str:
    if not len(rows):
        return "This score is defined for nobody among the customers of the test: nothing can be said of it."
    return (
        f"The test has {rows.people:,} customers for this score, and {int((rows.label > 0).sum()):,} of its "
        f"{len(rows):,} rows came true. That is too few: what could be said or drawn would be chance."
    )


def drivers(contract: Contract, task: Task) -> list[tuple[str, float]]:
    """Group of facts -> by how much it moves the score on average, the most important first."""
    means = contract.explanation.importance.groups.get(task.name, {})
    return sorted(((contract.schema.groups[group], mean) for group, mean in means.items()), key=lambda one: -one[1])


def _dates(rows: Rows) -> str:
    return "one test date" if rows.dates == 1 else f"{rows.dates} test dates"


def _naive(contract: Contract, rows: Rows) -> str:
    return contract.schema.by_name[rows.naive_feature].label.lower()


def _named(one: SliceFacts) -> str:
    return f"{one.title.lower()} {one.name}"


def currency(contract: Contract) -> str:
    return next((task.unit for task in contract.tasks if task.kind == "amount"), "")
