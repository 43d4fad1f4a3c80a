"""Forms that other programs read: one function for each, by the name that ``export --to`` takes (docs/exports.md)."""

from __future__ import annotations

from circuitfind.output.exports.eap_ig import eap_ig, width_of
from circuitfind.output.exports.form import Exported, Form, Source
from circuitfind.output.exports.graphs import cytoscape, gexf, graphml, node_link
from circuitfind.output.exports.neuronpedia import neuronpedia
from circuitfind.output.exports.own import own
from circuitfind.output.exports.pictures import dot, pdf, png, svg
from circuitfind.output.exports.python import python
from circuitfind.output.exports.tables import tables

__all__ = ["FORMS", "Exported", "Form", "Source", "stem", "width_of"]

FORMS: dict[str, Form] = {
    "dot": Form("text of Graphviz", ".dot", dot),
    "svg": Form("picture for the web", ".svg", svg),
    "png": Form("picture for slides", ".png", png),
    "pdf": Form("picture for papers", ".pdf", pdf),
    "graphml": Form("Gephi, yEd, igraph, networkx", ".graphml", graphml),
    "gexf": Form("Gephi", ".gexf", gexf),
    "cytoscape": Form("Cytoscape and Cytoscape.js", ".cytoscape.json", cytoscape),
    "node-link": Form("networkx.node_link_graph, D3", ".node-link.json", node_link),
    "eap-ig": Form(
        "JSON of EAP-IG, which the MIB benchmark evaluates: every edge, its score, membership",
        ".eap-ig.json",
        eap_ig,
    ),
    "neuronpedia": Form("Neuronpedia and circuit-tracer's frontend", ".neuronpedia.json", neuronpedia),
    "csv": Form("spreadsheets: one file of nodes, one of edges", ".csv", tables),
    "python": Form("a script that runs the circuit with TransformerLens hooks", ".py", python),
    "json": Form("circuitfind: files of other programs, in our form", ".circuitfind.json", own),
}
"""By name."""


def stem(name: str) -> str:
    """A file's name without its ending, and without that of the form that it was written in."""
    endings = [form.ending for form in FORMS.values() if form.ending.endswith(".json")]
    return next((name.removesuffix(ending) for ending in (*endings, ".json") if name.endswith(ending)), name)
