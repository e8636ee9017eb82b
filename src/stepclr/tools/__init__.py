"""Step 8, upstairs: what one does with an encoder, a run or a folder of images. Nothing below imports from here.

`embed.py` writes embeddings; `search/` finds the images most like one; `curate/` finds duplicates, outliers, wrong
labels and what to label next; `label/` writes a page to label them on; `export/` writes an encoder for others;
`sklearn.py` is a scikit-learn step; `report/` is the page of a run; `pages.py` and `style.css` are what these two pages
share; `doctor/` examines images before training; `walk.py` shows the eight steps; `scores.py` has the tables of scores,
`notes.py` what has to be known to read them, `label_chart.py` their chart, `gains.py` what one is above another,
`compare.py` sets runs side by side, and `methods.py` describes the rows; `predicted.py` shows predictions; `sheet.py`
draws views; `images.py` makes thumbnails and sheets; `options.py` writes the options of commands that are printed.
"""
