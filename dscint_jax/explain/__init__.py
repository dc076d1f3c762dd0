"""What a network looks at, and whether that is where the lesions are.

attention     the maps of some images: spatial attention, Grad-CAM
lesions       the lesions of an image, from the mask in its record
scores        how well a map points at lesions, and the maps that any network has to beat
summary       means over images, with intervals that resample patients
montage       a picture of some studies under their maps
explanations  all of it for a split: explanations.json, explanations.png, a table
"""
