"""Pages that are one file and need no network: base template, style, figures and pictures as data URLs."""

from grafalign.pages.figures import confusion_figure, figure_url
from grafalign.pages.pictures import exact_picture_url, jpeg, picture_url
from grafalign.pages.render import render

__all__ = ['confusion_figure', 'exact_picture_url', 'figure_url', 'jpeg', 'picture_url', 'render']
