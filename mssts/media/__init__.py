"""Video files, image folders and data sets in, pictures and videos out."""
