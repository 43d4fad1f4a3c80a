"""Forms of programs that read graphs: GraphML, GEXF, Cytoscape.js and networkx."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitfind.output.exports.form import Exported, Source
from circuitfind.output.exports.plain import Plain, clean, flat, plain

if TYPE_CHECKING:
    import networkx as nx


def graphml(source: Source) -> Exported:
    """GraphML: yEd, Gephi, igraph, networkx. Lists become texts."""
    import networkx as nx

    found = plain(source.what, source.words)
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    graph.graph.update(flat(found.facts))
    graph.add_nodes_from((name, flat(attributes)) for name, attributes in found.nodes.items())
    for number, (u, v, _, attributes) in enumerate(found.edges):
        graph.add_edge(
            u, v, key=f"e{number}", **flat(attributes)
        )  # keys become ids, and names are none in XML
    lines = nx.generate_graphml(graph)
    text = '<?xml version="1.0" encoding="UTF-8"?>\n' + "\n".join(lines) + "\n"
    return _exported(found, ".graphml", text)


def gexf(source: Source) -> Exported:
    """GEXF 1.2: Gephi. A node's label is what people call it, else its name; lists become texts."""
    import networkx as nx

    found = plain(source.what, source.words)
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for name, attributes in found.nodes.items():
        told = flat(attributes)
        graph.add_node(name, **{**told, "label": told.get("label", name)})
    for number, (u, v, _, attributes) in enumerate(found.edges):
        told = flat(attributes)
        graph.add_edge(u, v, key=f"e{number}", **told, label=told["name"])
    text = "\n".join(nx.generate_gexf(graph, version="1.2draft")) + "\n"
    # The day of writing would make every file another one.
    text = re.sub(r' lastmodifieddate="[^"]*"', "", text, count=1)
    held = "; ".join(f"{name}: {value}" for name, value in found.facts.items() if value != "")
    creator = re.search(r"<creator>.*?</creator>", text)
    if creator:
        text = text.replace(
            creator[0], f"<creator>circuitfind</creator><description>{_xml(held)}</description>", 1
        )
    return _exported(found, ".gexf", '<?xml version="1.0" encoding="UTF-8"?>\n' + text)


def cytoscape(source: Source) -> Exported:
    """The JSON of Cytoscape.js, which Cytoscape imports too."""
    import networkx as nx

    found = plain(source.what, source.words)
    data: dict[str, Any] = nx.cytoscape_data(_multigraph(found))
    data["data"] = dict(found.facts)
    for node in data["elements"]["nodes"]:
        node["data"] = {"label": node["data"]["id"], **node["data"]}
    return _exported(found, ".cytoscape.json", _text(data))


def node_link(source: Source) -> Exported:
    """The JSON of ``networkx.node_link_graph``, with its edges under ``edges``."""
    found = plain(source.what, source.words)
    data = {
        "directed": True,
        "multigraph": True,
        "graph": dict(found.facts),
        "nodes": [{**attributes, "id": name} for name, attributes in found.nodes.items()],
        "edges": [
            {**attributes, "source": u, "target": v, "key": key} for u, v, key, attributes in found.edges
        ],
    }
    return _exported(found, ".node-link.json", _text(data))


def _multigraph(found: Plain) -> nx.MultiDiGraph[str]:
    import networkx as nx

    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    graph.add_nodes_from((name, dict(attributes)) for name, attributes in found.nodes.items())
    for u, v, key, attributes in found.edges:
        graph.add_edge(u, v, key=key, **attributes, id=attributes["name"])
    return graph


def _xml(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(clean(text))


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _exported(found: Plain, ending: str, text: str) -> Exported:
    return Exported({ending: text}, found.counts)
