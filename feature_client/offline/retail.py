"""Online Retail II (UCI 502, CC BY 4.0): real invoices of a gift web shop, as events.

To obtain it: https://doi.org/10.24432/C5CG6D, file `online_retail_II.xlsx`; `load_events` takes it as it is.
"""

import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from feature_client.offline.events import EVENT_SCHEMA, EventsError, Source

COLUMNS = pa.schema(
    {
        "invoice": pa.string(),
        "stock_code": pa.string(),
        "description": pa.string(),
        "quantity": pa.int64(),
        "ts": pa.timestamp("us"),
        "price": pa.float64(),  # GBP a piece
        "customer_id": pa.float64(),
        "country": pa.string(),
    }
)

SHEETS = ("Year 2009-2010", "Year 2010-2011")
SECOND_SHEET_FROM = (2010, 12)
"""Year and month. The sheets overlap from here on; the second one counts."""

SHEET_COLUMNS = ("Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country")

PRODUCT = r"^([0-9]{5}|DCGS|SP[0-9]|PADS)"
"""Stock codes of goods. The others are postage, fees, vouchers, manual corrections and tests."""

CATEGORIES = {
    "christmas": r"CHRISTMAS|XMAS|ADVENT|SANTA|REINDEER|SNOW|BAUBLE|NOEL|STOCKING",
    "bags": r"\bBAGS?\b|SHOPPER|PURSE|RUCKSACK|HOLDALL",
    "lighting": r"LIGHT|LANTERN|CANDLE|LAMP|\bLED\b",
    "kitchen": r"MUG|CUP|CAKE|TEA|COFFEE|BOWL|PLATE|JUG|BOTTLE|JAR|LUNCH|KITCHEN|BAKING|SPOON|NAPKIN|APRON|TRAY|RECIPE",
    "garden": r"GARDEN|FLOWER|PLANT|BIRD|BUTTERFLY|ROSE|SEED|WATERING|PARASOL",
    "stationery": r"CARD|PAPER|WRAP|NOTEBOOK|PENCIL|\bPENS?\b|BOOK|TAPE|STICKER|CHALK|TISSUE|RIBBON|LETTER",
    "toys": r"TOY|DOLL|GAME|CHILD|KIDS|PUZZLE|TEDDY|SOLDIER|SPACEBOY|DOLLY|SKIPPING|JIGSAW",
    "jewellery": r"NECKLACE|BRACELET|EARRING|BROOCH|BEAD|JEWEL|\bRINGS?\b|HAIR|CHARM",
    "party": r"PARTY|BUNTING|BALLOON|BIRTHDAY|GARLAND|CELEBRAT",
    "home": r"FRAME|CLOCK|HOOK|SIGN|DRAWER|CUSHION|HEART|MIRROR|DOORMAT|CABINET|BOX|TIN|HOLDER|STORAGE|WICKER|BASKET",
}
"""Keywords of the description, first match wins; the eleventh category is `other`."""


def recognises(raw: ir.Table) -> bool:
    return set(COLUMNS.names) <= set(raw.columns)


def source(raw: ir.Table) -> Source:
    """raw: rows with COLUMNS."""
    raw = raw.select(*COLUMNS.names)
    reasons = [
        ("no customer", raw.customer_id.isnull()),
        ("no time", raw.ts.isnull()),
        ("not a product", raw.stock_code.isnull() | ~raw.stock_code.upper().re_search(PRODUCT)),
        ("price not positive", raw.price.isnull() | (raw.price <= 0)),
        ("no quantity", raw.quantity.isnull() | (raw.quantity == 0)),
    ]
    return Source("online_retail_ii", "GBP", raw, raw.ts.cast(EVENT_SCHEMA["ts"]), reasons, _to_events)


def workbook_to_parquet(path: Path, target: Path) -> Path:
    """The original workbook, row by row, as Parquet with COLUMNS. Raises EventsError."""
    try:
        import openpyxl  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  (only for this one file)
    except ModuleNotFoundError as exc:
        raise EventsError(f"{path.name} is an Excel workbook, which needs openpyxl: pip install openpyxl") from exc
    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as exc:
        raise EventsError(f"{path.name} is not a readable workbook: {exc}") from exc
    if absent := [sheet for sheet in SHEETS if sheet not in workbook.sheetnames]:
        raise EventsError(f"{path.name} has no sheet {' and no sheet '.join(absent)}")
    with pq.ParquetWriter(target, COLUMNS) as writer:
        for sheet in SHEETS:
            for rows in _chunks(tqdm(_rows(workbook[sheet], sheet), desc=sheet, unit=" rows", unit_scale=True), 50_000):
                try:
                    writer.write_table(pa.Table.from_pylist(rows, schema=COLUMNS))
                except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
                    raise EventsError(f"sheet {sheet} of {path.name} holds values of another type: {exc}") from exc
    return target


def _to_events(rows: ir.Table) -> ir.Table:
    words = rows.description.upper()
    returned = (rows.quantity < 0) | rows.invoice.upper().startswith("C")
    quantity = rows.quantity.cast("int64").abs()
    return rows.select(
        customer_id=rows.customer_id.cast("int64").cast("string"),
        ts=rows.ts.cast(EVENT_SCHEMA["ts"]),
        type=returned.ifelse("return", "purchase"),
        item=rows.stock_code.upper(),
        category=ibis.cases(
            *((words.re_search(keywords), name) for name, keywords in CATEGORIES.items()), else_="other"
        ),
        quantity=quantity,
        # DuckDB widens the product; cast back to where Ibis believes it is.
        amount=(rows.price.cast(EVENT_SCHEMA["amount"]) * quantity).cast("decimal(38, 4)"),
        order_id=rows.invoice,
        country=rows.country,
        channel=ibis.null("string"),
    )


def _rows(sheet: Any, name: str) -> Iterator[dict[str, object]]:
    lines = sheet.iter_rows(values_only=True)
    header = [str(cell).strip() for cell in next(lines, ())]
    if absent := [column for column in SHEET_COLUMNS if column not in header]:
        raise EventsError(f"sheet {name} has no column {', '.join(absent)}")
    places = [header.index(column) for column in SHEET_COLUMNS]
    for line in lines:
        invoice, code, description, quantity, ts, price, customer, country = (line[place] for place in places)
        if not isinstance(ts, datetime):
            ts = None  # refused later, with its reason
        elif ((ts.year, ts.month) >= SECOND_SHEET_FROM) != (name == SHEETS[1]):
            continue
        yield {
            "invoice": _stripped(invoice),
            "stock_code": _stripped(code),
            "description": _stripped(description),
            "quantity": quantity,
            "ts": ts,
            "price": price,
            "customer_id": customer,
            "country": _stripped(country),
        }


def _stripped(cell: object) -> str | None:
    return None if cell is None else str(cell).strip()


def _chunks(rows: Iterable[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    chunk: list[dict[str, object]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
