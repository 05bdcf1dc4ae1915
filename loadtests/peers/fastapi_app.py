"""Peer: FastAPI with Feast's SDK, as both document it. /sync runs in FastAPI's thread pool, /async on its loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel

from loadtests.peers.job import Job


class Question(BaseModel):
    customer_id: str


class Answer(BaseModel):
    scores: dict[str, float]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.job = Job.from_environment()
    await app.state.job.store.initialize()
    yield
    await app.state.job.store.close()


app = FastAPI(lifespan=lifespan)


@app.post("/sync")
def predict(question: Question, request: Request) -> Answer:
    job: Job = request.app.state.job
    return Answer(scores=job.model.named(job.read([question.customer_id]))[0])


@app.post("/async")
async def predict_async(question: Question, request: Request) -> Answer:
    job: Job = request.app.state.job
    return Answer(scores=job.model.named(await job.read_async([question.customer_id]))[0])


@app.get("/health")
def health() -> dict[str, bool]:
    return {"ready": True}
