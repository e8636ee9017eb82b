"""A page on which a person labels images in a browser, without a server.

`writing.py` chooses the images and writes the page; `page.html`, `page.css`, `page.js` are the page. The page keeps the
answers in the browser's storage and saves them as `labels.csv`; `commands.py` says what to run with them.
"""
