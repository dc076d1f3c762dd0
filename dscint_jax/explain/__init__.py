"""What a network looks at, and whether that is where the lesions are.

maps          of some images: spatial attention, Grad-CAM, gradient x input
lesions       the lesions of an image, from the mask in its record
scores        how well a map points at lesions, and the maps that any network has to beat
summary       means over images, with intervals that resample patients
explanations  all of it for a split: explanations.json, a table
"""

TOLERANCE_MM = 15.0
"""How far from a lesion the maximum of a map may lie: about what a camera blurs a point to."""
