"""Predictions for new studies: from image files to class probabilities, maps and pages.

studies   the studies that files and folders hold, read by the code that builds data sets
sources   the headers from which results that a PACS files with a study are made
runs      trained networks, by their work directory or model file
networks  the same, applied to studies, one or several together
answers   what becomes of a study, which all that is written is made of
page      an HTML page a study, and one that lists them
"""
