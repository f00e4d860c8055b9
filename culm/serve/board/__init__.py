"""The training board: runs in the browser, from the files in their folders."""
