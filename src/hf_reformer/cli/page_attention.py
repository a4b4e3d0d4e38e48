"""What a token looked at, to be seen: a picture over rounds and buckets, and the places that weighed most."""

from html import escape

FEWEST = 0.002  # probability below which nothing is drawn
AROUND = 24  # tokens on both sides of a place that is quoted
MOST = 8  # places quoted


def draw(maps, title=None):
    """A figure of matplotlib: a panel for each layer that hashes (for each layer where none does), a line for each head and round.

    Args:
        maps: of `hf_reformer.attention_map`.
    """
    from matplotlib.figure import Figure  # no pyplot: it is not for several threads

    layers = [(i, found) for i, found in enumerate(maps) if found.buckets is not None] or list(enumerate(maps))
    rows = sum(found.weights.shape[0] * found.weights.shape[1] for _, found in layers)
    figure = Figure(figsize=(9, 1.2 * len(layers) + 0.16 * rows), layout="constrained")
    axes = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (layer, found) in zip(axes, layers, strict=True):
        _draw_layer(axis, found)
        axis.set_title(f"layer {layer}, {found.kind}", fontsize=9)
    hashed = layers[0][1].buckets is not None
    axes[-1].set_xlabel(
        ("grey: in its bucket; " if hashed else "") + "red: what it looked at, by area; position of the token"
    )
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _draw_layer(axis, found):
    heads, rounds, length = found.weights.shape
    weights = found.weights.flatten(0, 1).float().cpu()
    if found.buckets is not None:
        same = (found.buckets == found.buckets[..., -1:]).flatten(0, 1).cpu()
        for row, tokens in enumerate(same):
            places = tokens.nonzero()[:, 0].tolist()
            axis.eventplot(places, lineoffsets=row, linelengths=0.8, linewidths=0.7, color="0.85")
    row, token = (weights > FEWEST).nonzero(as_tuple=True)
    axis.scatter(token, row, s=200 * weights[row, token], color="tab:red", zorder=2)
    names = [f"head {h}" + f" round {r}" * (rounds > 1) for h in range(heads) for r in range(rounds)]
    axis.set(yticks=range(len(names)), yticklabels=names, xlim=(-1, length))
    axis.tick_params(labelsize=7)


def places(maps, most=MOST):
    """[(weight, layer, head, round, bucket or None, position)] of the places that weighed most in the layers that hash, or, where
    none does, in all; the heaviest first."""
    hashed = any(found.buckets is not None for found in maps)
    heaviest = []
    for layer, found in enumerate(maps):
        if hashed and found.buckets is None:
            continue
        _, rounds, length = found.weights.shape
        weights, places = found.weights.flatten().topk(min(most, found.weights.numel()))
        for weight, place in zip(weights.tolist(), places.tolist(), strict=True):
            head, rest = divmod(place, rounds * length)
            number, position = divmod(rest, length)
            bucket = None if found.buckets is None else int(found.buckets[head, number, position])
            heaviest.append((weight, layer, head, number, bucket, position))
    return [place for place in sorted(heaviest, reverse=True)[:most] if place[0] > FEWEST]


def quoted(tokenizer, tokens, position):
    """HTML: the text around a token, which is marked."""
    pieces = (
        tokens[max(0, position - AROUND) : position],
        [tokens[position]],
        tokens[position + 1 : position + 1 + AROUND],
    )
    before, here, after = (escape(tokenizer.decode(piece)).replace("\n", "⏎") for piece in pieces)
    return f"<code>{before}<mark>{here}</mark>{after}</code>"


def table(maps, tokenizer, tokens):
    """HTML of the heaviest places among these tokens."""
    rows = [
        f"<tr><td>{100 * weight:.1f} %</td><td>{quoted(tokenizer, tokens, position)}</td><td>{position:,}</td>"
        f"<td>{layer}</td><td>{head}</td><td>{number}</td><td>{'-' if bucket is None else bucket}</td></tr>"
        for weight, layer, head, number, bucket, position in places(maps)
    ]
    headings = "".join(
        f"<th>{name}</th>" for name in ("weight", "text there", "position", *["layer", "head", "round", "bucket"])
    )
    alone = "<p>Of the layers that hash, if there are any. A token that finds no other looks at itself.</p>"
    return f'<div style="overflow-x: auto"><table><tr>{headings}</tr>{"".join(rows)}</table></div>{alone}'
