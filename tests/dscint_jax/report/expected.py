"""What the tables of a page have to say of a metrics.json, without the report's own code."""

METRICS = ("accuracy", "precision", "recall", "specificity", "f1")
FACTS = {
    "view": "view",
    "sex": "sex",
    "age_band": "age",
    "manufacturer": "maker",
    "site_key": "site",
}


def cell(value, bounds=None, digits=3):
    if value is None:
        return "not defined"
    interval = f" ({bounds[0]:z.3f} to {bounds[1]:z.3f})" if bounds else ""
    return f"{value:.{digits}f}{interval}"


def expected_rows(result):
    """The rows of each table by its name."""
    classes = result["classes"]
    return {
        "classes": [_class(label, result["per_class"][label]) for label in classes],
        "groups": list(_groups(result)),
        "confusion": [
            [_plain(label), *map(str, counts)]
            for label, counts in zip(classes, result["confusion_matrix"], strict=True)
        ],
        "areas": [_area(label, result["areas"][label]) for label in classes],
        "calibration": list(_calibration(result["calibration"])),
        "abstention": [
            [cell(point[name]) for name in ("coverage", "confidence", "accuracy")]
            for point in result["abstention"]
        ],
        "answers": [
            [
                f"{point['accuracy_target']:g}",
                "none" if point["least_confidence"] is None else cell(point["least_confidence"]),
                cell(point["validation"]["coverage"]),
                cell(point["coverage"], point["coverage_interval"]),
                cell(point["validation"]["accuracy"]),
                cell(point["accuracy"], point["accuracy_interval"]),
                *(cell(point["coverage_by_class"][label]) for label in classes),
            ]
            for point in result["answers"] or ()
        ],
        "operating_points": [
            _point(label, held, result["operating_points"][label][f"{held}_95"])
            for label in classes
            if (result["operating_points"] or {}).get(label)
            for held in ("specificity", "sensitivity")
        ],
    }


def _plain(label):
    return label.replace("_", " ")


def _class(label, values):
    cells = [cell(values[name], values[f"{name}_interval"]) for name in METRICS[1:]]
    return [_plain(label), str(values["support"]), *cells]


def _groups(result):
    noun = "studies" if result.get("records") == "studies" else "images"
    named = [(f"all {noun}", result)]
    named += [(f"whole {unit}", result[unit]) for unit in ("studies", "patients")]
    for fact, title in FACTS.items():
        for value in sorted(result["groups"].get(fact, {})):
            named.append((f"{title}: {value}", result["groups"][fact][value]))
    for name, found in named:
        bounds = found["intervals"]["values"]
        counts = [str(found["support"]), str(found["intervals"]["patients"])]
        yield [name, *counts, *(cell(found[metric], bounds[metric]) for metric in METRICS)]


def _area(label, area):
    cells = [cell(area[n], area[f"{n}_interval"]) for n in ("auroc", "average_precision")]
    return [_plain(label), cell(area["prevalence"]), *cells]


def _calibration(found):
    rows = [("as the network says", 1.0, found)]
    if found["after"]:
        rows.append(("after temperature", found["temperature"], found["after"]))
    for name, temperature, source in rows:
        cells = [cell(source[n], source[f"{n}_interval"]) for n in ("ece", "brier")]
        yield [name, cell(temperature), *cells]


def _point(label, held, point):
    there, drift = point["validation"], None
    if point[held] is not None and there[held] is not None:
        drift = f"{point[held] - there[held]:+.3f}".replace("-", "−")
    return [
        _plain(label),
        f"{held} of 0.95",
        "none" if point["threshold"] is None else cell(point["threshold"]),
        cell(there["sensitivity"]),
        cell(point["sensitivity"], point["sensitivity_interval"]),
        cell(there["specificity"]),
        cell(point["specificity"], point["specificity_interval"]),
        drift or "not defined",
    ]
