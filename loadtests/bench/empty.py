"""The yardstick: a FastAPI endpoint with pydantic models that takes the gateway's own request and does nothing.

python -m uvicorn loadtests.bench.empty:app --no-access-log --no-server-header --log-level warning
"""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Entity(BaseModel):
    customer_id: str


class Question(BaseModel):
    entities: list[Entity]


class Answer(BaseModel):
    customer_id: str
    purchase_30d: float
    churn_90d: float
    spend_90d: float


@app.post("/v1/predict")
async def predict(question: Question) -> Answer:
    return Answer(customer_id=question.entities[0].customer_id, purchase_30d=0.31, churn_90d=0.12, spend_90d=141.2)


@app.get("/readyz")
async def readyz() -> dict[str, bool]:
    return {"ready": True}
