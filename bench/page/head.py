"""The head of the page: where, when and with what a run was measured, and what the machine can do."""

from collections.abc import Iterable, Mapping

from . import points
from .charts import si
from .markup import Markup, joined, tag


def pairs(pairs: Iterable[tuple[str, object]]) -> list[Markup]:
    return [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]


def where(document: Mapping) -> str:
    """The GPU's name, or the CPU's with its cores."""
    machine = document.get("machine") or {}
    if machine.get("device") == "cuda":
        return str(machine.get("gpu") or "unknown GPU")
    cores = f", {machine['cores']} cores" if machine.get("cores") else ""
    return f"{machine.get('cpu') or 'unknown machine'}{cores}"


def banner(document: Mapping) -> Markup:
    on_gpu = points.dig(document, "machine", "device") == "cuda"
    kind = (
        f"GPU figures, measured on one {where(document)}"
        if on_gpu
        else "CPU figures: nothing here was measured on a GPU"
    )
    parts = [tag("p", kind, class_="banner")]
    if not document.get("finished"):
        begun, done = len(document.get("attempts") or {}), len(document.get("cases") or {})
        text = f"This run is not finished: {done} cases are written down"
        parts.append(tag("p", f"{text}, {begun} were begun." if begun else f"{text}.", class_="banner warning"))
    return joined(parts)


def facts(document: Mapping) -> Markup:
    """Where, when and with what it was measured."""
    machine, chosen = document.get("machine") or {}, document.get("selection") or {}
    selection = [
        f"{key}: {value if isinstance(value, str) else ', '.join(map(str, value))}"
        for key, value in chosen.items()
        if value
    ]
    capability = ".".join(map(str, machine.get("capability") or ()))
    gpu = [
        machine.get("gpu"),
        capability and f"compute capability {capability}",
        machine.get("sms") and f"{machine['sms']} SMs",
        machine.get("gpu_memory_gib") and f"{machine['gpu_memory_gib']} GiB",
        machine.get("driver") and f"driver {machine['driver']}",
    ]
    cpu = [
        machine.get("cpu"),
        machine.get("cores") and f"{machine['cores']} cores",
        machine.get("threads") and f"{machine['threads']} threads used",
        machine.get("memory_gib") and f"{machine['memory_gib']} GiB",
        machine.get("system"),
    ]
    versions = document.get("versions") or {}
    when = [
        str(document[key]).replace("T", " ").replace("+00:00", " UTC")
        for key in ("created", "finished")
        if document.get(key)
    ]
    found = {
        "GPU": ", ".join(str(part) for part in gpu if part),
        "CPU": ", ".join(str(part) for part in cpu if part),
        "when": " to ".join(when),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "missing": ", ".join(name for name, version in versions.items() if not version),
        "commit": str(document.get("commit") or "none"),
        "profile": f"{document.get('profile') or '?'}, {'; '.join(selection) or 'all of it'}",
        "seed": str(document.get("seed")),
    }
    return tag("dl", *pairs([(name, value) for name, value in found.items() if value]), class_="facts")


def ceilings(document: Mapping) -> Markup:
    read, products = points.roofs(document)
    copy = points.positive(points.dig(document, "ceilings", "copy"))
    found = [("memory, reading", si(read, "B/s"))] if read else []
    found += [("memory, copying (read + written)", si(copy, "B/s"))] if copy else []
    found += [(f"matrix product, {dtype}", si(rate, "FLOP/s")) for dtype, rate in products.items()]
    if not found:
        return tag("p", "The ceilings were not measured in this run.", class_="quiet")
    about = "Measured in this run with PyTorch's own operations. Floors and rooflines below come from these."
    return joined([tag("p", about, class_="about"), tag("dl", *pairs(found), class_="tiles")])
